"""Takes the commands out of the README, so that a test can run what a user would type."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from penstock.cluster.local import LocalCluster
from projects import REPO_ROOT, Project

_BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """One command as it was run, and what came of it."""

    command: str
    exit_code: int
    stdout: str
    stderr: str
    duration_s: float


def commands(section: str) -> list[str]:
    """Every `$ ` line of the console blocks under the README's heading `## <section>`."""
    text = (REPO_ROOT / "README.md").read_text("utf-8")
    part = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert part, f"the README has no section {section!r}"
    lines: list[str] = []
    for block in _BLOCK.findall(part[1]):
        for line in block.splitlines():
            if lines and lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1] + line.strip()
            elif line.startswith("$ "):
                lines.append(line[2:])
    assert lines, f"the README's section {section!r} has no command"
    return lines


def run(command: str, environment: Mapping[str, str], replace: Mapping[str, str]) -> Step:
    """Run one command in a shell at the project's root, with the project's own `penstock` first."""
    for old, new in replace.items():
        command = command.replace(old, new)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=REPO_ROOT, env={**environment, "PATH": path},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return Step(command, done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def walk(
    project: Project,
    cluster: LocalCluster,
    sample: Path,
    *,
    instead: Mapping[str, str] | None = None,
) -> Iterator[Step]:
    """Run the README's journey in the project, up to the first command that fails.

    `instead` names what is run in place of parts of the commands.
    """
    replace = {
        ".penstock/sample": str(sample),
        "http://127.0.0.1:8000": cluster.serving_url,
        **(instead or {}),
    }
    for command in commands("The journey"):
        # Whoever started the Ray takes it down.
        if command == "penstock down":
            continue
        step = run(command, project.environment, replace)
        yield step
        if step.exit_code:
            return
