"""What a run ran on: the commit of the project and the versions of every package."""

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import orjson


def git_commit(folder: Path) -> str | None:
    """Give the commit that the folder stands at, `-dirty` after it where files differ.

    None where the folder is under no git, or git is not installed.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=10,
    )
    return done.stdout.strip()


def packages() -> dict[str, str]:
    """Give Python's version and that of every installed package, by name."""
    found = {
        distribution.metadata["Name"].lower(): distribution.version
        for distribution in metadata.distributions()
        if distribution.metadata["Name"]
    }
    return {"python": platform.python_version(), **dict(sorted(found.items()))}


def digest(versions: dict[str, str]) -> str:
    """Give the SHA-256 of the versions: equal digests, equal environments."""
    return hashlib.sha256(orjson.dumps(versions, option=orjson.OPT_SORT_KEYS)).hexdigest()
