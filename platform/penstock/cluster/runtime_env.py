"""What a job or a replica runs on: the project as it stands, and the settings it must know."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import penstock
from penstock.settings import Settings

# Written as in a .gitignore; what .gitignore itself names is left out by Ray anyway. Ray holds each
# against the project's root and against the package's alike: no room's name may stand here.
_NEVER_SENT = (
    ".git",
    ".venv",
    ".penstock",
    ".github",
    ".ci",
    "__pycache__",
    ".*_cache",
    ".hypothesis",
    "/tests",
    "/docs",
    "/benchmarks",
    "*.parquet",
    "*.csv",
    "*.db",
    "*.onnx",
    "*.zip",
)


def package_folder() -> Path:
    """Where the package that runs now lies."""
    return Path(penstock.__file__).parent


def runtime_env(settings: Settings, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Describe the environment of jobs and replicas: project, package, settings; no pip step.

    The package goes along, so that a cluster runs the code of the one who submits. Passwords do
    not: a node carries its own.

    Args:
        settings: whose project and storage.
        env: more environment variables.
    """
    return {
        "working_dir": str(settings.project_root.resolve()),
        "excludes": [*_NEVER_SENT, *_storage_inside_project(settings)],
        "py_modules": [str(package_folder())],
        "env_vars": settings.job_environment() | settings.actor_environment() | dict(env or {}),
    }


def _storage_inside_project(settings: Settings) -> list[str]:
    try:
        inside = settings.storage_path.relative_to(settings.project_root.resolve())
    except ValueError:
        return []
    return [f"/{inside.as_posix()}"] if inside.parts else []
