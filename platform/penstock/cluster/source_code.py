"""The code that a project runs, as bytes by name, and the digest that names it."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_LEFT_OUT = frozenset({"__pycache__", ".ipynb_checkpoints"})
_SUFFIXES = frozenset({".py", ".yaml", ".yml", ".toml", ".json"})


def read(places: Mapping[str, Path]) -> dict[str, bytes]:
    """Read code and configuration below each folder, or the one file, under the name given.

    What is not there is left out; so are hidden folders and what is no code.
    """
    return {
        name: path.read_bytes()
        for under, place in places.items()
        for name, path in _files(place, under)
    }


def digest(contents: Mapping[str, bytes]) -> str:
    """Give the SHA-256 of names and contents, whatever their order."""
    summed = hashlib.sha256()
    for name, content in sorted(contents.items()):
        summed.update(f"{name}\0{len(content)}\0".encode())
        summed.update(content)
    return summed.hexdigest()


def _files(place: Path, under: str) -> Iterator[tuple[str, Path]]:
    if place.is_file():
        yield under, place
        return
    for parent, folders, names in os.walk(place):
        folders[:] = sorted(f for f in folders if f not in _LEFT_OUT and not f.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if path.suffix in _SUFFIXES and path.is_file():
                yield f"{under}/{path.relative_to(place).as_posix()}", path
