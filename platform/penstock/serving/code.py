"""The code that replicas run: a frozen copy of the declarations and the package, by its digest.

A replica may be started again long after the one who deployed has gone, and must then come up with
the code of that deploy, whatever the project's folder holds by then. So it runs from a copy in the
storage, which every node shares.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from penstock.cluster.runtime_env import package_folder
from penstock.locks import exclusive
from penstock.settings import Settings

_FREEZING = ".freezing-"
_WAIT_S = 60.0
_LEFT_OUT = frozenset({"__pycache__", ".ipynb_checkpoints"})


def freeze_code(settings: Settings) -> Path:
    """Copy project settings, declarations and package into the storage, once per content.

    Returns:
        The folder; its name is the digest of what it holds.
    """
    # Read once: what is copied is what the digest names, whatever is edited meanwhile.
    contents = {name: source.read_bytes() for name, source in _files(settings)}
    digest = hashlib.sha256()
    for name, content in sorted(contents.items()):
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    target = settings.storage_path / "serving" / "code" / digest.hexdigest()[:32]
    with exclusive(target.parent / ".lock", what="the copy of the code", wait_s=_WAIT_S):
        # Of a deploy that was killed: no other one holds the lock.
        for left in target.parent.glob(f"{_FREEZING}*"):
            shutil.rmtree(left)
        if not target.is_dir():
            temporary = target.with_name(f"{_FREEZING}{target.name}")
            for name, content in contents.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            temporary.rename(target)
    return target


def _files(settings: Settings) -> Iterator[tuple[str, Path]]:
    project_file = settings.project_root / "pyproject.toml"
    if project_file.is_file():
        yield "pyproject.toml", project_file
    yield from _tree(settings.feature_repo_path, settings.feature_repo)
    yield from _tree(package_folder(), "penstock")


def _tree(folder: Path, under: str) -> Iterator[tuple[str, Path]]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in _LEFT_OUT and not f.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix in (".py", ".yaml", ".yml", ".toml", ".json") and path.is_file():
                yield f"{under}/{path.relative_to(folder).as_posix()}", path
