"""Brings the newest row of every entity into the online store.

Every run writes the whole newest state, not only what came since the last: a late event changes
rows that were materialized long ago. The store itself refuses older rows, so that a run that was
killed, or runs beside pushes of newer values, can simply run again.
"""

from datetime import UTC, datetime
from typing import cast

from feast.infra.offline_stores.offline_utils import get_offline_store_from_config
from feast.infra.online_stores.helpers import get_online_store_from_config

from penstock.cluster.tasks import runner
from penstock.errors import UserError
from penstock.features.declarations import load_feature_objects
from penstock.features.newest_rows import bring_newest
from penstock.features.online_rows import EPOCH, RowStore
from penstock.features.store import note_materialized, open_store, registered_view
from penstock.locks import exclusive
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.settings import Settings


class MaterializedView(Record):
    """A feature view whose newest rows, up to `until`, are in the online store."""

    view: str
    num_entities: int
    newest_event: datetime | None
    until: datetime


def materialize(
    settings: Settings,
    use_case: str,
    *,
    until: datetime | None = None,
    progress: Progress = silent,
) -> list[MaterializedView]:
    """Write the newest row of each entity, by event time and then created time, up to `until`.

    The watermark in the registry moves after all rows of a view are written.

    Args:
        settings: where the tables, the registry and the online store are.
        use_case: whose views.
        until: rows after it stay out; a naive time is UTC; None: now.
        progress: hears of rows written.

    Raises:
        UserError: a view was not applied as it is declared now.
        NotFoundError: a view's table was not built yet.
        BusyError: another process is materializing the same use case.
    """
    end = until or datetime.now(UTC)
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    declared = load_feature_objects(settings, use_case)
    lock = settings.storage_path / "locks" / f"materialize-{use_case}"
    with exclusive(lock, what=f"the materialization of {use_case}"):
        store = open_store(settings)
        views = [registered_view(store, view) for view in declared.views.values() if view.online]
        if not views:
            raise UserError(
                f"{use_case} declares no feature view with online=True",
                next_step=f"declare one in {settings.feature_repo_path / use_case / 'views.py'}",
            )
        online = cast(RowStore, get_online_store_from_config(store.config.online_store))
        try:
            done = []
            for view in views:
                written = bring_newest(
                    store.config,
                    get_offline_store_from_config(store.config.offline_store),
                    online,
                    view,
                    (EPOCH, end),
                    scratch=settings.storage_path / "scratch" / "materialize",
                    run=runner(),
                    progress=progress,
                )
                done.append(
                    MaterializedView(
                        view=view.name,
                        num_entities=written.num_entities,
                        newest_event=written.newest_event,
                        until=end,
                    )
                )
                note_materialized(settings, store, view, end)
            return done
        finally:
            online.disconnect()
