"""What a use case declares about its features: its feature tables, and Feast's own objects.

Feast's vocabulary is used wherever it has a word (entity, feature view, on-demand feature view,
feature service); it has none for "this table is computed from that one by these windows", which is
a FeatureTable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from penstock.errors import DeclarationError, unknown_name
from penstock.features.windows import Windows
from penstock.settings import Settings
from penstock.use_cases import declared, import_declarations, split_name, use_case_folder

if TYPE_CHECKING:
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView

# In the order in which one builds on the other; a use case need not have all of them.
FEATURE_MODULES = ("entities", "transforms", "views", "services")


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """A Delta table of features, computed from another table by time windows.

    Attributes:
        name: the table that is written, e.g. `shop.customer_windows`.
        source: the table of events that it is computed from, e.g. `shop.orders`.
        windows: entity, event time, widths, aggregations and delay.
    """

    name: str
    source: str
    windows: Windows

    def __post_init__(self) -> None:
        split_name(self.name)
        split_name(self.source)
        if self.name == self.source:
            raise DeclarationError(f"the feature table {self.name} names itself as its source")

    @property
    def digest(self) -> str:
        """A text that changes when anything declared here changes."""
        content = json.dumps(asdict(self), sort_keys=True, default=_as_json)
        return hashlib.sha256(content.encode()).hexdigest()


def _as_json(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    raise TypeError(f"{type(value).__name__} cannot be part of a declaration's digest")


def load_feature_tables(settings: Settings, use_case: str) -> dict[str, FeatureTable]:
    """Import the feature tables of a use case, by their qualified names, in declared order.

    There are none where its views read tables as they are.

    Raises:
        NotFoundError: no such use case.
        DeclarationError: two of them share a name, or one belongs to another use case.
    """
    if not (use_case_folder(settings, use_case) / "feature_tables.py").is_file():
        return {}
    module = import_declarations(settings, use_case, "feature_tables")
    tables: dict[str, FeatureTable] = {}
    for table in declared(module, FeatureTable):
        if split_name(table.name)[0] != use_case:
            raise DeclarationError(
                f"{use_case}/feature_tables.py declares {table.name}",
                allowed=f"names that start with {use_case}.",
            )
        if table.name in tables:
            raise DeclarationError(f"{use_case}/feature_tables.py declares {table.name} twice")
        tables[table.name] = table
    return tables


@dataclass(frozen=True, kw_only=True)
class FeatureObjects:
    """Feast's objects of one use case, each kind by name."""

    entities: dict[str, Entity]
    views: dict[str, FeatureView]
    on_demand_views: dict[str, OnDemandFeatureView]
    services: dict[str, FeatureService]

    def service(self, name: str) -> FeatureService:
        """Find a feature service by name.

        Raises:
            NotFoundError: there is none; the nearest is offered.
        """
        if name not in self.services:
            raise unknown_name("feature service", name, self.services)
        return self.services[name]


def function_of(view: OnDemandFeatureView) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
    """Give the function of an on-demand view: columns in, columns out.

    Raises:
        DeclarationError: its mode is another one; then training and serving would need two.
    """
    if view.mode != "python" or view.singleton or view.feature_transformation is None:
        raise DeclarationError(
            f"the on-demand view {view.name!r} has the mode {view.mode!r}"
            + (", one row at a time" if view.singleton else ""),
            allowed="mode python over whole columns, for training and for serving alike",
        )
    function: Callable[[dict[str, Any]], Mapping[str, Any]] = view.feature_transformation.udf
    return function


def load_feature_objects(settings: Settings, use_case: str) -> FeatureObjects:
    """Import the entities, views and services of a use case from its declarations.

    Nothing is read from Feast's registry: its entries with Python functions are unpickled on load
    (CVE-2026-18948), while these files are code that the project already trusts.

    Raises:
        NotFoundError: no such use case.
        DeclarationError: a file cannot be imported, or two objects of one kind share a name.
    """
    from feast import Entity, FeatureService, FeatureView, OnDemandFeatureView

    found: dict[type, dict[str, Any]] = {
        kind: {} for kind in (Entity, FeatureView, OnDemandFeatureView, FeatureService)
    }
    folder = settings.feature_repo_path / use_case
    present = [name for name in FEATURE_MODULES if (folder / f"{name}.py").is_file()]
    for module_name in present or ["views"]:
        module = import_declarations(settings, use_case, module_name)
        for kind, by_name in found.items():
            values: Iterator[Any] = declared(module, kind)
            for value in values:
                if by_name.setdefault(value.name, value) is not value:
                    raise DeclarationError(
                        f"{use_case} declares two objects named {value.name!r} "
                        f"of the kind {kind.__name__}"
                    )
    return FeatureObjects(
        entities=found[Entity],
        views=found[FeatureView],
        on_demand_views=found[OnDemandFeatureView],
        services=found[FeatureService],
    )
