"""Runs a script that imports Feast in a process of its own: Feast warns, caches, leaks at exit."""

import os
import subprocess
import sys
from pathlib import Path

# Ours first: it makes Feast's import light, which is most of what such a script takes.
_LIGHT = (
    "import penstock.features, runpy, sys; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


def run_script(script: Path, *arguments: object, cwd: Path | None = None) -> None:
    """Run it to its end; it has to succeed."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _LIGHT, str(script), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"FEAST_USAGE": "False", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
