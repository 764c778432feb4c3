"""What there is to know about a use case's features: declared, built, applied and materialized."""

from datetime import datetime

from feast.errors import FeastObjectNotFoundException

from penstock.data import tables
from penstock.features.build import SOURCE_VERSION
from penstock.features.declarations import load_feature_objects, load_feature_tables
from penstock.features.store import open_store
from penstock.records import Record
from penstock.settings import Settings


class FeatureTableState(Record):
    """A declared feature table and its newest version, None where it was not built yet."""

    name: str
    source: str
    version: int | None
    source_version: int | None
    num_rows: int | None


class ViewState(Record):
    """A declared feature view and how far it was materialized, None where it was not yet."""

    name: str
    join_keys: tuple[str, ...]
    features: tuple[str, ...]
    ttl_s: float | None
    is_applied: bool
    materialized_until: datetime | None


class ServiceState(Record):
    """A declared feature service and its features, in the order of a model's input."""

    name: str
    features: tuple[str, ...]


class Overview(Record):
    """All of a use case's features."""

    use_case: str
    tables: tuple[FeatureTableState, ...]
    views: tuple[ViewState, ...]
    services: tuple[ServiceState, ...]


def overview(settings: Settings, use_case: str) -> Overview:
    """Look at the declarations, the tables and the registry.

    Raises:
        NotFoundError: no such use case.
    """
    objects = load_feature_objects(settings, use_case)
    store = open_store(settings)
    views = []
    for view in objects.views.values():
        try:
            registered = store.get_feature_view(view.name)
        except FeastObjectNotFoundException:
            registered = None
        views.append(
            ViewState(
                name=view.name,
                join_keys=tuple(view.join_keys),
                features=tuple(feature.name for feature in view.features),
                ttl_s=view.ttl.total_seconds() if view.ttl else None,
                is_applied=registered is not None,
                materialized_until=registered.most_recent_end_time if registered else None,
            )
        )
    return Overview(
        use_case=use_case,
        tables=tuple(_table_states(settings, use_case)),
        views=tuple(views),
        services=tuple(
            ServiceState(
                name=service.name,
                features=tuple(
                    f.name for view in service.feature_view_projections for f in view.features
                ),
            )
            for service in objects.services.values()
        ),
    )


def _table_states(settings: Settings, use_case: str) -> list[FeatureTableState]:
    states = []
    for table in load_feature_tables(settings, use_case).values():
        newest = (
            tables.latest(settings, table.name) if tables.exists(settings, table.name) else None
        )
        made_from = newest.metadata.get(SOURCE_VERSION) if newest else None
        states.append(
            FeatureTableState(
                name=table.name,
                source=table.source,
                version=newest.version if newest else None,
                source_version=int(made_from) if made_from is not None else None,
                num_rows=newest.num_rows if newest else None,
            )
        )
    return states
