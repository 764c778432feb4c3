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
    read,
    write,
)
from penstock.features.redis_online_store import GuardedRedisOnlineStore
from penstock.features.row_cache import RowCache
from waiting import wait_for

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

    def test_a_cache_whose_connection_was_cut_gives_nothing_old(self, store, config, redis_server):
        view = make_view("cut")
        prepare(store, config, view)
        write(store, config, view, 1, START_US, 1.0)
        cache = RowCache(GuardedRedisOnlineStore(), max_age_s=600)
        assert [read(cache, config, view, 1).values.tolist() for _ in range(2)] == [[[1, 1]]] * 2
        client = store._get_client(config.online_store)
        for listening in client.client_list(_type="pubsub"):
            client.client_kill_filter(_id=listening["id"])
        write(store, config, view, 1, START_US + 1, 5.0)
        wait_for(lambda: read(cache, config, view, 1).values.tolist() == [[5, 5]])
        write(store, config, view, 1, START_US + 2, 6.0)
        wait_for(lambda: read(cache, config, view, 1).values.tolist() == [[6, 6]])
        num_hits = cache.counts.num_hits
        read(cache, config, view, 1)
        assert cache.counts.num_hits == num_hits + 1
        cache.disconnect()
