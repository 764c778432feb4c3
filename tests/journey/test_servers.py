"""The servers that the cluster profile stands on, as the fixtures start them."""

import pytest

from servers import Postgres, Redis

pytestmark = pytest.mark.servers


class TestServers:
    def test_postgres_answers_with_its_password_and_not_without(self, postgres: Postgres):
        import psycopg

        url = postgres.create("a_test")
        plain = url.replace("postgresql+psycopg", "postgresql")
        with psycopg.connect(plain) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("a_test",)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(plain.replace(postgres.password, "wrong"))

    def test_redis_answers_with_its_password_and_not_without(self, redis_server: Redis):
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        with redis.Redis(port=redis_server.port, password=redis_server.password) as client:
            client.set("key", "value")
            assert client.get("key") == b"value"
        with (
            redis.Redis(port=redis_server.port, retry=Retry(NoBackoff(), 0)) as stranger,
            pytest.raises(redis.exceptions.AuthenticationError),
        ):
            stranger.get("key")
