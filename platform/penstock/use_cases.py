"""Finds the use cases: each is one folder of declarations in the feature repo."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from pydantic import ValidationError

from penstock.errors import DeclarationError, unknown_name
from penstock.settings import Settings

T = TypeVar("T")


def list_use_cases(settings: Settings) -> list[str]:
    """Name every use case: the folders of the feature repo that declare tables."""
    repo = settings.feature_repo_path
    if not repo.is_dir():
        return []
    return sorted(p.name for p in repo.iterdir() if p.is_dir() and (p / "tables.py").is_file())


def use_case_folder(settings: Settings, use_case: str) -> Path:
    """Find the folder of a use case's declarations.

    Raises:
        NotFoundError: there is no such use case; the nearest is offered.
    """
    known = list_use_cases(settings)
    if use_case not in known:
        raise unknown_name("use case", use_case, known)
    return settings.feature_repo_path / use_case


def import_declarations(settings: Settings, use_case: str, module: str) -> ModuleType:
    """Import `feature_repo/<use_case>/<module>.py` under the name that Feast gives it too.

    Feast imports `churn.views` relative to the repo; the same name here keeps every declared
    object one object in the process.

    Raises:
        NotFoundError: there is no such use case or it has no such module.
        DeclarationError: the module itself fails while it is imported.
    """
    folder = use_case_folder(settings, use_case)
    if not (folder / f"{module}.py").is_file():
        raise unknown_name(
            f"declaration file in {use_case}", module, (p.stem for p in folder.glob("*.py"))
        )
    repo = str(settings.feature_repo_path)
    if repo not in sys.path:
        sys.path.insert(0, repo)
    try:
        return importlib.import_module(f"{use_case}.{module}")
    except DeclarationError:
        raise
    except ValidationError as error:
        told = "; ".join(
            ".".join((error.title, *map(str, each["loc"]))) + f": {each['msg']}"
            for each in error.errors(include_url=False)
        )
        raise DeclarationError(
            f"{use_case}/{module}.py declares what cannot be: {told}",
            next_step=f"mend {folder / (module + '.py')}",
        ) from error
    except Exception as error:
        raise DeclarationError(
            f"{use_case}/{module}.py cannot be imported: {type(error).__name__}: {error}",
            next_step=f"mend {folder / (module + '.py')}",
        ) from error


def declared(module: ModuleType, kind: type[T]) -> Iterator[T]:
    """Yield every module-level object of the given type, in the order of declaration."""
    for value in vars(module).values():
        if isinstance(value, kind):
            yield value


def split_name(qualified: str, kind: str = "table") -> tuple[str, str]:
    """Split `churn.events` into its use case and its own name.

    Raises:
        DeclarationError: the text has not exactly two parts.
    """
    use_case, dot, name = qualified.partition(".")
    if not (dot and use_case and name) or "." in name:
        raise DeclarationError(
            f"{qualified!r} does not name a {kind}",
            allowed="<use case>.<name>, for example churn.events",
        )
    return use_case, name
