"""Imports what a use case names by its path, and calls it with the options of the declaration."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError

from penstock.errors import DeclarationError, unknown_name


def extend_path(folders: tuple[str, ...]) -> None:
    """Let a module of the user's be imported from the folders."""
    for folder in folders:
        # A relative folder is one of the job's working directory, which differs by node.
        absolute = str(Path(folder).resolve())
        if absolute not in sys.path and Path(absolute).is_dir():
            sys.path.insert(0, absolute)


def import_named(path: str, *, what: str) -> Any:
    """Import `package.module:Name`.

    Raises:
        DeclarationError: there is no such module, or nothing of that name in it.
    """
    module_name, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise DeclarationError(
            f"the {what} {path!r} cannot be imported: {error}",
            allowed="package.module:Name, importable from the feature repo",
        ) from error


def call_with_options(
    found: Callable[..., Any], options: Mapping[str, Any], *first: Any, path: str
) -> Any:
    """Call a class or function; each option has to be one that it takes, and of its type.

    Args:
        found: what stands under the path.
        options: by name, from the declaration.
        first: what comes before them.
        path: as declared, for the error.

    Raises:
        NotFoundError: no such option; the nearest is offered.
        DeclarationError: an option of another type than the annotation's, or one is missing.
    """
    parameters = list(inspect.signature(found).parameters.values())[len(first) :]
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters):
        names = [each.name for each in parameters]
        for name in options:
            if name not in names:
                raise unknown_name(f"option of {path}", name, names)
    types = _types(found)
    for name, value in options.items():
        _check_type(path, name, value, types.get(name))
    try:
        return found(*first, **options)
    except (TypeError, ValueError) as error:
        raise DeclarationError(
            f"{path!r} does not take what model.py gives it: {error}",
            allowed=f"{path.partition(':')[2]}{inspect.signature(found)}",
        ) from error


def _types(found: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(found, eval_str=True).parameters.values()
    except (NameError, TypeError):
        # Annotations that only a type checker can read say nothing here.
        return {}
    return {each.name: each.annotation for each in parameters if each.annotation is not each.empty}


def _check_type(path: str, name: str, value: Any, declared: Any) -> None:
    if declared is None:
        return
    try:
        TypeAdapter(declared).validate_python(value, strict=True)
    except ValidationError as error:
        raise DeclarationError(
            f"the option {name} of {path} is {value!r}", allowed=error.errors()[0]["msg"]
        ) from None
    except PydanticSchemaGenerationError:
        # A type that pydantic does not know is the class's own to check.
        return
