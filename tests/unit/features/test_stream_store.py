import os

import pytest
from feast.repo_config import RepoConfig

from payments import settings_in
from penstock.errors import SettingsError
from penstock.features.store import repo_config
from penstock.features.stream_store import RedisStates, SqliteStates, open_states


class StatesBehaviour:
    """Needs the fixture `config`."""

    @pytest.fixture
    def states(self, config):
        states = open_states(config)
        yield states
        states.close()

    def test_what_was_written_is_read_in_the_order_asked_for(self, states):
        states.write({b"one": b"1", b"two": b"\0\xff"})
        assert states.read([b"two", b"none", b"one", b"two"]) == [b"\0\xff", None, b"1", b"\0\xff"]

    def test_a_value_replaces_the_former_one(self, states):
        states.write({b"one": b"1"})
        states.write({b"one": b"2"}, durable=True)
        assert states.read([b"one"]) == [b"2"]

    def test_a_value_is_replaced_only_where_there_is_one(self, states):
        states.write({b"one": b"1"})
        assert states.replace(b"one", b"2", durable=True)
        assert not states.replace(b"other", b"2")
        assert states.read([b"one", b"other"]) == [b"2", None]

    def test_nothing_is_read_and_written_without_harm(self, states):
        states.write({})
        assert states.read([]) == []

    def test_more_values_than_one_command_takes_all_arrive(self, states):
        values = {f"many:{n}".encode(): os.urandom(20) for n in range(9_000)}
        states.write(values)
        assert dict(zip(values, states.read(list(values)), strict=True)) == values

    def test_another_connection_reads_them(self, states, config):
        states.write({b"shared": b"1"})
        other = open_states(config)
        assert other.read([b"shared"]) == [b"1"]
        other.close()


class TestSqliteStates(StatesBehaviour):
    @pytest.fixture
    def config(self, tmp_path) -> RepoConfig:
        return repo_config(settings_in(tmp_path))

    def test_they_live_in_the_online_stores_file(self, states, tmp_path):
        assert isinstance(states, SqliteStates)
        assert (tmp_path / "online_store.db").is_file()


@pytest.mark.servers
class TestRedisStates(StatesBehaviour):
    @pytest.fixture
    def config(self, tmp_path, redis_server) -> RepoConfig:
        settings = settings_in(tmp_path, online_store="redis", redis=redis_server.connection_string)
        return repo_config(settings)

    def test_they_live_in_the_online_stores_redis(self, states):
        assert isinstance(states, RedisStates)

    def test_a_redis_that_drops_keys_is_refused(self, states, config):
        client = states._client
        try:
            client.config_set("maxmemory", "100mb")
            client.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(SettingsError, match="allkeys-lru"):
                open_states(config)
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("maxmemory", "0")
