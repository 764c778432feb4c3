"""A project for tests: this repository's declarations, with a storage and ports of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from penstock.settings import Settings, load_settings

REPO_ROOT = Path(__file__).resolve().parent.parent
# Far from the defaults, so that a test run does not meet a Ray that the developer has up.
_FIRST_PORT = 20_000
_NUM_PORT_BLOCKS = 20
_PORTS_PER_BLOCK = 500


class Completed(NamedTuple):
    """What a command left."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        return json.loads(self.stdout)


@dataclass(frozen=True, kw_only=True)
class Project:
    """Runs the command line against one storage root and never sees the caller's own settings."""

    storage: Path
    root: Path = REPO_ROOT
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PENSTOCK_", "RAY_"))
        }
        block = _FIRST_PORT + os.getpid() % _NUM_PORT_BLOCKS * _PORTS_PER_BLOCK
        return inherited | {
            "PENSTOCK_PROJECT_ROOT": str(self.root),
            "PENSTOCK_STORAGE__ROOT": str(self.storage),
            # Where to begin to look: `up` takes the next free one.
            "PENSTOCK_RAY__GCS_PORT": str(block),
            "PENSTOCK_RAY__DASHBOARD_PORT": str(block + 10),
            "PENSTOCK_RAY__METRICS_PORT": str(block + 20),
            "PENSTOCK_SERVING__PORT": str(block + 30),
            "PENSTOCK_RAY__OBJECT_STORE_MEMORY_BYTES": str(512 << 20),
            "NO_COLOR": "1",
            "COLUMNS": "200",
            **self.more,
        }

    @property
    def settings(self) -> Settings:
        """The same settings as the commands see, for calls within the test's own process."""
        mine = dict(os.environ)
        try:
            os.environ.clear()
            os.environ.update(self.environment)
            return load_settings()
        finally:
            os.environ.clear()
            os.environ.update(mine)

    def run(self, *arguments: str, timeout_s: float = 300.0, **more: str) -> Completed:
        """Run `penstock …` to its end; `more` are further environment variables."""
        done = subprocess.run(
            [self.command, *arguments],
            env=self.environment | more,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    def must(self, *arguments: str, timeout_s: float = 300.0, **more: str) -> Completed:
        """Run a command that has to succeed."""
        done = self.run(*arguments, timeout_s=timeout_s, **more)
        assert done.code == 0, (
            f"penstock {' '.join(arguments)} ended with {done.code}\n{done.stderr}{done.stdout}"
        )
        return done

    @property
    def command(self) -> str:
        return str(Path(sys.executable).parent / "penstock")
