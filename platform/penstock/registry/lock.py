"""The lock under which a model's versions and aliases change; it dies with its holder."""

import contextlib
import hashlib
import time
from collections.abc import Iterator

import sqlalchemy

from penstock.errors import BusyError, PenstockError
from penstock.locks import exclusive
from penstock.logs import redact
from penstock.settings import Settings


@contextlib.contextmanager
def model_lock(settings: Settings, name: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the model's lock for the block: in Postgres where MLflow is there, else by a file.

    A Postgres tracking database may serve machines that share no file locks, so the lock is where
    the aliases are; the server frees it when the connection ends.

    Raises:
        BusyError: another process still holds it after `wait_s`.
    """
    what = f"the model {name}"
    if settings.tracking_uri.startswith("postgresql"):
        with _advisory(settings.tracking_uri, name, what=what, wait_s=wait_s):
            yield
    else:
        file = settings.storage_path / "locks" / f"model-{name}.lock"
        with exclusive(file, what=what, wait_s=wait_s):
            yield


@contextlib.contextmanager
def _advisory(url: str, name: str, *, what: str, wait_s: float) -> Iterator[None]:
    digest = hashlib.sha256(f"penstock model {name}".encode()).digest()
    key = int.from_bytes(digest[:8], "big", signed=True)
    # A connection of its own, never pooled: were it handed on, it would hand on the lock.
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
    try:
        connection = engine.connect()
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise PenstockError(
            f"the tracking database cannot be reached: {redact(str(error))}",
            next_step="start it, or change tracking.uri",
        ) from None
    with connection.execution_options(isolation_level="AUTOCOMMIT"):
        deadline = time.monotonic() + wait_s
        take = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")
        while not connection.execute(take, {"key": key}).scalar():
            if time.monotonic() >= deadline:
                raise BusyError(
                    f"{what} is held by another process", next_step="try again when it ends"
                )
            time.sleep(0.05)
        yield
