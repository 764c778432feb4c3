"""The code that replicas run: a frozen copy of the declarations and the package, by its digest.

A replica may be started again long after the one who deployed has gone, and must then come up with
the code of that deploy, whatever the project's folder holds by then. So it runs from a copy in the
storage, which every node shares.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from penstock.cluster.runtime_env import package_folder
from penstock.settings import Settings

_LEFT_OUT = frozenset({"__pycache__", ".ipynb_checkpoints"})


def freeze_code(settings: Settings) -> Path:
    """Copy project settings, declarations and package into the storage, once per content.

    Returns:
        The folder; its name is the digest of what it holds.
    """
    files = dict(_files(settings))
    digest = hashlib.sha256()
    for name, source in sorted(files.items()):
        content = source.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    target = settings.storage_path / "serving" / "code" / digest.hexdigest()[:32]
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".freezing-", dir=target.parent))
    try:
        for name, source in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)
        temporary.chmod(0o755)
        temporary.rename(target)
    except OSError:
        shutil.rmtree(temporary, ignore_errors=True)
        # Another deploy may have put the same content there meanwhile.
        if not target.is_dir():
            raise
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
