"""A Kafka for tests: librdkafka's own mock cluster, which speaks the real protocol over TCP."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class MockKafka:
    """Brokers that live as long as the producer that holds them."""

    def __init__(self, **options: str):
        from confluent_kafka import Producer

        quiet = {"log_level": 3, "bootstrap.servers": "replaced", "linger.ms": 0}
        self._producer = Producer({"test.mock.num.brokers": 1, **quiet, **options})
        brokers = self._producer.list_topics(timeout=10).brokers.values()
        self.servers = ",".join(f"{broker.host}:{broker.port}" for broker in brokers)

    @property
    def options(self) -> dict[str, str]:
        return {"bootstrap.servers": self.servers, "log_level": "3"}

    def make_topic(self, topic: str) -> int:
        """Make a topic by asking for it; gives the number of its partitions."""
        return len(self._producer.list_topics(topic, timeout=10).topics[topic].partitions)

    def send(self, topic: str, *values: dict[str, Any] | bytes, partition: int = 0) -> None:
        """Send values and wait until the broker has them."""
        for value in values:
            text = value if isinstance(value, bytes) else json.dumps(value).encode()
            self._producer.produce(topic, text, partition=partition)
        assert self._producer.flush(10) == 0


@contextmanager
def mock_kafka(**options: str) -> Iterator[MockKafka]:
    kafka = MockKafka(**options)
    yield kafka
    del kafka
