"""Opens Feast's feature store as the settings say, and applies declarations to its registry."""

import warnings
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import yaml
from feast import FeatureStore, FeatureView
from feast.errors import FeastObjectNotFoundException
from feast.feature_view import FeatureViewState
from feast.repo_config import RepoConfig
from google.protobuf.json_format import MessageToDict
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from penstock.errors import DeclarationError, PenstockError, SettingsError, UserError
from penstock.features.declarations import FeatureObjects, load_feature_objects
from penstock.features.online_rows import EPOCH
from penstock.locks import exclusive
from penstock.logs import redact, shown_url
from penstock.records import Record
from penstock.settings import Settings
from penstock.use_cases import list_use_cases

_OFFLINE_STORE = "penstock.features.offline_store.PenstockOfflineStore"
_ONLINE_STORES = {
    "sqlite": "penstock.features.sqlite_online_store.RowSqliteOnlineStore",
    "redis": "penstock.features.redis_online_store.GuardedRedisOnlineStore",
}
_KINDS = ("entities", "views", "on_demand_views", "services")
_WAIT_FOR_REGISTRY_S = 10.0


class Change(Record):
    """One object of the registry that an apply touched."""

    kind: str
    name: str
    change: str
    """added, updated or removed."""


def repo_config(settings: Settings) -> RepoConfig:
    """Read feature_store.yaml and put the settings' registry and stores over what it says.

    Raises:
        SettingsError: the file is absent or no YAML mapping.
    """
    file = settings.feature_repo_path / "feature_store.yaml"
    try:
        given = yaml.safe_load(file.read_text("utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{file} cannot be read: {error}") from None
    if not isinstance(given, Mapping) or "project" not in given:
        raise SettingsError(f"{file} names no Feast project", next_step="add `project: <name>`")
    config = RepoConfig(
        **{
            **given,
            "registry": {
                "registry_type": "sql",
                "path": _with_driver(settings.registry_url),
                # Loaded once and never again on the hot path; whoever needs it newer refreshes.
                "cache_ttl_seconds": 0,
                # Feast closes no store: pooled connections would stay open until the process ends.
                "sqlalchemy_config_kwargs": {"poolclass": NullPool},
            },
            "offline_store": {
                "type": _OFFLINE_STORE,
                "tables_root": str(settings.storage_path / "tables"),
                "join_memory_bytes": settings.feature_store.join_memory_bytes,
            },
            "online_store": _online_store(settings),
            "entity_key_serialization_version": 3,
        }
    )
    config.repo_path = settings.feature_repo_path
    return config


def _online_store(settings: Settings) -> dict[str, Any]:
    kind = settings.feature_store.online_store
    if kind == "redis":
        return {"type": _ONLINE_STORES[kind], "connection_string": settings.redis_address}
    return {"type": _ONLINE_STORES[kind], "path": str(settings.online_db_path)}


def _with_driver(url: str) -> str:
    # Feast rewrites a bare postgresql:// to this driver too, but with a warning.
    return url.replace("postgresql://", "postgresql+psycopg://", 1)


def open_store(settings: Settings) -> FeatureStore:
    """Open Feast's feature store; the folder of the embedded registry is made when absent.

    Raises:
        SettingsError: feature_store.yaml cannot be read.
        PenstockError: the registry's database cannot be reached.
    """
    settings.storage_path.mkdir(parents=True, exist_ok=True)
    store = FeatureStore(config=repo_config(settings))
    try:
        # Feast makes the registry's tables when it is first touched: two processes doing so at
        # once would both try to create them.
        with _registry_lock(settings):
            _ = store.registry
    except (SQLAlchemyError, ValueError) as error:
        raise PenstockError(
            f"Feast's registry at {shown_url(settings.registry_url)} cannot be opened: "
            f"{redact(str(error.__cause__ or error), settings.registry_url)}",
            next_step="check feature_store.registry_url and that the database is up",
        ) from None
    return store


def _registry_lock(settings: Settings) -> Any:
    return exclusive(
        settings.storage_path / "locks" / "feature-registry",
        what="the feature registry",
        wait_s=_WAIT_FOR_REGISTRY_S,
    )


def apply(settings: Settings, use_cases: Iterable[str] | None = None) -> list[Change]:
    """Bring the registry and the online store's tables in line with the declarations.

    Args:
        settings: where the registry and the feature repo are.
        use_cases: which ones; None: all of them, and what no use case declares any more goes.

    Returns:
        What changed; a second call changes nothing.

    Raises:
        BusyError: another process holds the registry.
        DeclarationError: two use cases declare the same name, or a declaration does not fit.
    """
    names = list_use_cases(settings) if use_cases is None else list(use_cases)
    wanted = _merge({name: load_feature_objects(settings, name) for name in names})
    store = open_store(settings)
    with _registry_lock(settings):
        registered = _registered(store)
        removed = (
            []
            if use_cases is not None
            else [
                (kind, name, registered[kind][name])
                for kind in _KINDS
                for name in registered[kind].keys() - wanted[kind].keys()
            ]
        )
        changes = [Change(kind=kind, name=name, change="removed") for kind, name, _ in removed]
        for kind in _KINDS:
            for name, declared in wanted[kind].items():
                present = registered[kind].get(name)
                if present is None:
                    changes.append(Change(kind=kind, name=name, change="added"))
                elif not _same(present, declared):
                    changes.append(Change(kind=kind, name=name, change="updated"))
        for name in registered["on_demand_views"].keys() & wanted["on_demand_views"].keys():
            # Feast would load the function of the row that it replaces.
            store.registry.delete_feature_view(name, store.project)
        # Also when nothing changed: it makes the online store's tables where they are missing.
        _apply(store, wanted, [value for _, _, value in removed])
    return changes


def _apply(store: FeatureStore, wanted: Mapping[str, Mapping[str, Any]], gone: list[Any]) -> None:
    objects = [value for kind in _KINDS for value in wanted[kind].values()]
    try:
        with warnings.catch_warnings():
            # Feast warns of its own on-demand retrieval, which Penstock does not use.
            warnings.filterwarnings("ignore", message="On demand feature view is an experimental")
            store.apply(objects, objects_to_delete=gone, partial=not gone)
    except PenstockError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise DeclarationError(f"Feast refuses the declarations: {error}") from error


def _merge(by_use_case: Mapping[str, FeatureObjects]) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {kind: {} for kind in _KINDS}
    owners: dict[tuple[str, str], str] = {}
    for use_case, objects in by_use_case.items():
        for kind in _KINDS:
            for name, value in getattr(objects, kind).items():
                other = owners.setdefault((kind, name), use_case)
                if other != use_case:
                    raise DeclarationError(
                        f"{other} and {use_case} both declare {name!r} ({kind})",
                        next_step="rename one: they share one Feast project",
                    )
                merged[kind][name] = value
    return merged


def _registered(store: FeatureStore) -> dict[str, dict[str, Any]]:
    # Feast puts this entity into every registry, for views without one.
    own = _DEFAULT_ENTITY
    return {
        "entities": {e.name: e for e in store.list_entities() if e.name != own},
        "views": {v.name: v for v in store.list_batch_feature_views()},
        "on_demand_views": {
            v.name: v
            # Without their functions: the registry's would run here as whoever applies.
            for v in store.registry.list_on_demand_feature_views(store.project, skip_udf=True)
        },
        "services": {s.name: s for s in store.list_feature_services()},
    }


def _same(present: Any, declared: Any) -> bool:
    """Whether the registry's object says what the declaration says."""
    return bool(essence(present) == essence(declared))


# What Feast adds by itself, or writes differently from one process to the next: times, the default
# entity, and a function's pickle (its source text stands beside it).
_INCIDENTAL = frozenset({"project", "version", "meta", "body"})
_DEFAULT_ENTITY = "__dummy"


def essence(value: Any) -> Any:
    """Give what a Feast object declares, as plain data that is the same in every process."""
    return _without_incidental(MessageToDict(value.to_proto().spec))


def _without_incidental(node: Any) -> Any:
    if isinstance(node, dict):
        kept = {k: _without_incidental(v) for k, v in node.items() if k not in _INCIDENTAL}
        return {k: v for k, v in kept.items() if v not in ([], {})}
    if isinstance(node, list):
        columns = [item for item in node if not _is_default_entity(item)]
        return [_without_incidental(item) for item in columns]
    return node


def _is_default_entity(item: Any) -> bool:
    return isinstance(item, dict) and item.get("name") == f"{_DEFAULT_ENTITY}_id"


def note_materialized(
    settings: Settings, store: FeatureStore, view: FeatureView, end: datetime
) -> None:
    """Write into the registry that the view's rows up to `end` are online.

    One interval stands for all: Feast's own call adds one a run, for ever.

    Raises:
        BusyError: another process holds the registry.
    """
    with _registry_lock(settings):
        # Read again: the view may have been applied anew while its rows were written.
        present = store.registry.get_feature_view(view.name, store.project)
        present.materialization_intervals = [(EPOCH, max(present.most_recent_end_time or end, end))]
        present.state = FeatureViewState.AVAILABLE_ONLINE
        store.registry.apply_feature_view(present, store.project)


def registered_view(store: FeatureStore, declared: FeatureView) -> FeatureView:
    """Find a view in the registry and make sure that it is the one declared.

    Raises:
        UserError: it was never applied, or the declaration changed since.
    """
    try:
        present = store.get_feature_view(declared.name)
    except FeastObjectNotFoundException:
        raise UserError(
            f"the feature view {declared.name!r} is not in the registry",
            next_step="run `penstock features apply`",
        ) from None
    if not _same(present, declared):
        raise UserError(
            f"the feature view {declared.name!r} was changed after it was last applied",
            next_step="run `penstock features apply`",
        )
    return present
