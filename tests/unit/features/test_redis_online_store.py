import uuid

import pytest
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.repo_config import RepoConfig

from online_stores import (
    START,
    START_US,
    OnlineStoreBehaviour,
    feast_key,
    make_view,
    prepare,
    write,
)
from penstock.features.redis_online_store import GuardedRedisOnlineStore

pytestmark = pytest.mark.servers


@pytest.fixture
def config(redis_server, tmp_path):
    return RepoConfig(
        # A project of its own keeps tests apart on the one server.
        project=f"rides_{uuid.uuid4().hex[:8]}",
        provider="local",
        registry=str(tmp_path / "registry.db"),
        online_store={
            "type": "penstock.features.redis_online_store.GuardedRedisOnlineStore",
            "connection_string": redis_server.connection_string,
        },
        entity_key_serialization_version=3,
    )


@pytest.fixture
def store():
    store = GuardedRedisOnlineStore()
    yield store
    store.disconnect()


class TestGuardedRedisOnlineStore(OnlineStoreBehaviour):
    def test_feasts_own_redis_store_reads_what_it_writes(self, store, config):
        view = make_view()
        prepare(store, config, view)
        write(store, config, view, 1, START_US, 3.0)
        plain = RedisOnlineStore()
        feasts = config.model_copy()
        feasts.online_config = RedisOnlineStoreConfig(
            connection_string=config.online_store.connection_string
        )
        feasts._online_store = None
        [(at, found)] = plain.online_read(feasts, view, [feast_key(1)], ["num_rides", "mean_km"])
        plain._client.close()
        assert at == START
        assert (found["num_rides"].int64_val, found["mean_km"].double_val) == (3, 3.0)
