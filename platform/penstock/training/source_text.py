"""Writes a declaration as the Python that a user would write in model.py."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def as_source(value: Any) -> str:
    """Give an expression; fields that have their default are left out.

    `XGBoost(num_rounds=197, max_depth=2)` for what differs in these two from `XGBoost()`.
    """
    match value:
        case BaseModel():
            fields = type(value).model_fields
            given = {
                name: getattr(value, name)
                for name, field in fields.items()
                if field.is_required() or getattr(value, name) != field.get_default()
            }
            parts = [f"{name}={as_source(each)}" for name, each in given.items()]
            return f"{type(value).__name__}({', '.join(parts)})"
        case tuple():
            inside = ", ".join(map(as_source, value))
            return f"({inside},)" if len(value) == 1 else f"({inside})"
        case Mapping():
            return f"{{{', '.join(f'{k!r}: {as_source(v)}' for k, v in value.items())}}}"
        case _:
            return repr(value)
