"""Writes a feature service as the Python text that declares it, for a person to copy."""

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from penstock.errors import UserError
from penstock.features.declarations import FEATURE_MODULES, load_feature_objects
from penstock.settings import Settings
from penstock.use_cases import import_declarations

_WIDTH = 100


def service_text(
    settings: Settings, use_case: str, service: str, kept: Sequence[str], *, notes: Sequence[str]
) -> str:
    """Give the text of a service with some of another one's features, in its order.

    Args:
        settings: which project.
        use_case: a folder of the feature repo.
        service: the declared service that the features are of.
        kept: their names; where there are none, the text says so and declares nothing.
        notes: sentences for the head of the text: why these features.

    Raises:
        NotFoundError: no such use case or service.
    """
    declared = load_feature_objects(settings, use_case).service(service)
    head = [
        f"A suggestion of `penstock features select {use_case}`, declared nowhere.",
        "To take it up, copy it into services.py and name it in model.py.",
        *notes,
    ]
    words = "\n\n".join("\n".join(wrap(sentence, _WIDTH)) for sentence in head)
    if not kept:
        return f'"""{words}\n\nNo feature is kept: there is nothing to suggest.\n"""\n'
    parts: list[str] = []
    imports: dict[str, set[str]] = {}
    for projection in declared.feature_view_projections:
        chosen = [feature.name for feature in projection.features if feature.name in kept]
        if not chosen:
            continue
        module, variable = _variable(settings, use_case, projection.name)
        imports.setdefault(module, set()).add(variable)
        view = variable
        if projection.name_alias:
            view += f".with_name({_quoted(projection.name_alias)})"
        if projection.join_key_map:
            view += f".with_join_key_map({_quoted(dict(projection.join_key_map))})"
        parts.append(_taken(view, chosen))
    lines = "".join(
        f"from {module} import {', '.join(sorted(names))}\n"
        for module, names in sorted(imports.items())
    )
    name = f"{service}_selected"
    return (
        f'"""{words}\n"""\n\nfrom feast import FeatureService\n\n{lines}\n'
        f"{name} = FeatureService(\n    name={_quoted(name)},\n    features=[\n"
        f"{''.join(parts)}    ],\n)\n"
    )


def _taken(view: str, features: Sequence[str]) -> str:
    """Some features of a view, on one line where they fit."""
    line = f"        {view}[[{', '.join(map(_quoted, features))}]],\n"
    if len(line) <= _WIDTH:
        return line
    listed = "".join(f"                {_quoted(feature)},\n" for feature in features)
    return f"        {view}[\n            [\n{listed}            ]\n        ],\n"


def _quoted(value: str | dict[str, str]) -> str:
    # JSON's strings, and objects of strings, are Python's too, with the quotes of our formatter.
    return json.dumps(value)


def check_target(settings: Settings, file: Path) -> None:
    """See that a file may hold a suggestion: `feast apply` declares all Python of the repo.

    Raises:
        UserError: it lies in the feature repo.
    """
    if file.resolve().is_relative_to(settings.feature_repo_path.resolve()):
        raise UserError(
            f"{file} lies in the feature repo, where `feast apply` would declare it",
            allowed="a file elsewhere: a suggestion is declared when it is copied into services.py",
        )


def _variable(settings: Settings, use_case: str, view: str) -> tuple[str, str]:
    """Find the module and the name under which a view is declared."""
    folder = settings.feature_repo_path / use_case
    present = [name for name in FEATURE_MODULES if (folder / f"{name}.py").is_file()]
    # The first is where it is declared: later files import what they build on.
    return next(
        (f"{use_case}.{module_name}", variable)
        for module_name in present
        for variable, value in vars(import_declarations(settings, use_case, module_name)).items()
        if _is_view(value, view)
    )


def _is_view(value: Any, view: str) -> bool:
    from feast.base_feature_view import BaseFeatureView

    return isinstance(value, BaseFeatureView) and value.name == view
