"""A Redis that comes back empty is refused with what to do, never served as blank."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from payments import SERVICE, USE_CASE, build_features, settings_in
from penstock.errors import StoreEmptyError
from penstock.features.materialize import materialize
from penstock.features.online import OnlineReader
from penstock.features.redis_online_store import GuardedRedisOnlineStore
from servers import Redis, running_redis

pytestmark = pytest.mark.servers

ROW = {
    "CUSTOMER_ID": 3,
    "TERMINAL_ID": 5,
    "TX_DATETIME": datetime(2024, 4, 29, 10, tzinfo=UTC),
    "TX_AMOUNT": 9.5,
}


def materialized(storage: Path, server: Redis):
    """The settings of a storage whose features are in that Redis."""
    settings = build_features(
        settings_in(storage, online_store="redis", redis=server.connection_string)
    )
    materialize(settings, USE_CASE)
    return settings


class TestRedisRestartedEmpty:
    def test_reads_are_refused_until_it_is_filled_again(self, tmp_path: Path):
        with running_redis(tmp_path / "first") as (server, process):
            settings = materialized(tmp_path / "storage", server)
            reader = OnlineReader.open(settings, USE_CASE, SERVICE)
            before = reader.read([ROW]).values
            assert not np.isnan(before).any()
            process.kill()
            process.wait()
            with running_redis(tmp_path / "second", like=server):
                with pytest.raises(StoreEmptyError, match="penstock features materialize"):
                    reader.read([ROW])
                materialize(settings, USE_CASE)
                np.testing.assert_array_equal(reader.read([ROW]).values, before)
            reader.close()

    def test_without_the_note_every_feature_would_be_blank(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(GuardedRedisOnlineStore, "is_filled", lambda *_: True)
        with running_redis(tmp_path / "first") as (server, process):
            settings = materialized(tmp_path / "storage", server)
            reader = OnlineReader.open(settings, USE_CASE, SERVICE)
            process.kill()
            process.wait()
            with running_redis(tmp_path / "second", like=server):
                assert len(reader.read([ROW]).missing[0]) == 12
            reader.close()
