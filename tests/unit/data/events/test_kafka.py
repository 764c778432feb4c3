"""Against librdkafka's mock cluster: the real protocol over TCP, brokers in this process."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from mock_kafka import MockKafka, mock_kafka
from penstock.data.events import MAX_EVENT_BYTES, Event, KafkaTopic
from penstock.data.events import kafka as kafka_source
from penstock.data.events.kafka import OUR_OPTIONS, KafkaSource
from penstock.errors import BusyError, ClusterError, DataError, NotFoundError, SettingsError

TABLE = "shop.orders"
WAIT_S = 30.0


@pytest.fixture(scope="module")
def kafka() -> Iterator[MockKafka]:
    with mock_kafka(**{"message.max.bytes": str(4 << 20)}) as running:
        yield running


def read(source: KafkaSource, num_events: int) -> list[Event]:
    """Poll until so many events are there."""
    events: list[Event] = []
    deadline_s = time.monotonic() + WAIT_S
    while len(events) < num_events:
        assert time.monotonic() < deadline_s, f"only {len(events)} of {num_events} came"
        events += source.poll(100, 0.2)
    return events


class Opened:
    """A source on a topic and in a group of its own: groups live as long as the cluster."""

    def __init__(self, kafka: MockKafka, topic: str):
        self.topic, self.group = topic, f"g-{topic}"
        self.declared = KafkaTopic(topic=topic, group=self.group)
        kafka.make_topic(topic)
        # To hear of a rebalance soon.
        options = {**kafka.options, "heartbeat.interval.ms": "100"}
        self.source = KafkaSource(options, self.declared, TABLE)

    def partition(self, number: int) -> str:
        return f"kafka:{self.group}/{self.topic}/{number}"

    def read(self, num_events: int) -> list[Event]:
        return read(self.source, num_events)


@pytest.fixture(scope="module")
def shared(kafka: MockKafka) -> Iterator[Opened]:
    """For all tests that need no group of their own: to join one takes seconds."""
    opened = Opened(kafka, "shared")
    opened.source.open({}, lambda: None)
    kafka.send(opened.topic, {"n": "first"}, partition=3)
    opened.read(1)
    yield opened
    opened.source.close()


@pytest.fixture
def own(kafka: MockKafka, request: pytest.FixtureRequest) -> Iterator[Opened]:
    opened = Opened(kafka, request.node.name[:60])
    yield opened
    opened.source.close()


@pytest.fixture
def other(kafka: MockKafka, own: Opened) -> Iterator[Any]:
    """Somebody else in the group."""
    from confluent_kafka import Consumer

    consumer = Consumer(
        {
            **kafka.options,
            "group.id": own.group,
            "auto.offset.reset": "earliest",
            "heartbeat.interval.ms": "100",
            "session.timeout.ms": "6000",
        }
    )
    yield consumer
    consumer.close()


class TestReading:
    def test_all_events_of_all_partitions_come_once_and_in_order(self, kafka, shared):
        for partition in (0, 1):
            kafka.send(shared.topic, *({"n": n} for n in range(50)), partition=partition)
        events = shared.read(100)
        for partition in (0, 1):
            name = shared.partition(partition)
            assert [e.offset for e in events if e.partition == name] == list(range(50))
        assert events[0].value == b'{"n": 0}'
        assert shared.source.poll(10, 0.1) == []
        assert shared.source.lag() == 0

    def test_an_event_comes_at_once(self, kafka, shared):
        kafka.send(shared.topic, {"n": 0}, partition=2)
        began_s = time.monotonic()
        assert shared.source.poll(1_000, WAIT_S)
        assert time.monotonic() - began_s < WAIT_S / 3

    def test_what_is_committed_is_what_the_group_shows(self, kafka, shared):
        from confluent_kafka import Consumer, TopicPartition

        kafka.send(shared.topic, {"n": 1}, {"n": 2}, partition=3)
        [*_, last] = shared.read(2)
        shared.source.commit({last.partition: last.next_offset, "push:x#1": 7})
        watcher = Consumer({**kafka.options, "group.id": shared.group})
        deadline_s = time.monotonic() + WAIT_S
        offset = -1
        while offset != last.next_offset and time.monotonic() < deadline_s:
            [place] = watcher.committed([TopicPartition(shared.topic, 3)], timeout=10)
            offset = place.offset
        watcher.close()
        assert offset == last.next_offset

    def test_no_value_and_one_too_long_are_for_the_contract_to_judge(self, kafka, shared):
        kafka.send(shared.topic, b"", b"x" * (MAX_EVENT_BYTES + 9))
        assert [event.value for event in shared.read(2)] == [b"", b"x" * MAX_EVENT_BYTES]

    def test_it_starts_where_the_table_is_and_not_where_the_group_is(self, kafka, own):
        from confluent_kafka import Consumer, TopicPartition

        kafka.send(own.topic, *({"n": n} for n in range(6)))
        # The group was told of other offsets than the table has.
        group = Consumer({**kafka.options, "group.id": own.group})
        offsets = [TopicPartition(own.topic, 0, 5)]
        group.commit(offsets=offsets, asynchronous=False)
        assert group.committed(offsets, timeout=10)[0].offset == 5
        group.close()
        own.source.open({own.partition(0): 2, "push:x#1": 9}, lambda: None)
        assert [event.offset for event in own.read(4)] == [2, 3, 4, 5]


class TestRebalances:
    def test_before_partitions_go_the_table_gets_what_was_read(self, kafka, own, other):
        kafka.send(own.topic, {"n": 0})
        flushed: list[list[Event]] = []
        events: list[Event] = []
        own.source.open({}, lambda: flushed.append(list(events)))
        events += own.read(1)
        other.subscribe([own.topic])
        deadline_s = time.monotonic() + WAIT_S
        while not other.assignment() and time.monotonic() < deadline_s:
            other.poll(0.05)
            events += own.source.poll(10, 0.05)
        # A group that is slow to meet is shared out more than once.
        assert flushed
        assert all(seen == events for seen in flushed)
        # From now on half of the partitions are the other's.
        theirs = {own.partition(place.partition) for place in other.assignment()}
        for partition in range(4):
            kafka.send(own.topic, {"n": partition}, partition=partition)
        ours = {event.partition for event in own.read(4 - len(theirs))}
        assert ours == {own.partition(n) for n in range(4)} - theirs
        assert own.source.poll(10, 0.1) == []

    def test_a_flush_that_fails_is_raised_from_poll(self, kafka, own, other):
        def fail() -> None:
            raise DataError("the table is full")

        kafka.send(own.topic, {"n": 0})
        own.source.open({}, fail)
        own.read(1)
        other.subscribe([own.topic])
        other.poll(0.5)
        # More than there are: until the other one takes part.
        with pytest.raises(DataError, match="the table is full"):
            own.read(2)


class TestFaults:
    def test_events_that_the_broker_no_longer_has_are_an_error(self, kafka, own):
        kafka.send(own.topic, {"n": 0})
        own.source.open({own.partition(0): 7}, lambda: None)
        with pytest.raises(DataError, match=r"offset 7: it ends at 1.*another group"):
            own.read(1)

    def test_brokers_that_are_away_are_told_of_once_and_waited_for(self, monkeypatch):
        with structlog.testing.capture_logs() as told:
            source = KafkaSource({"bootstrap.servers": "127.0.0.1:9"}, KafkaTopic(topic="t"), TABLE)
            monkeypatch.setattr(kafka_source, "LOOK_UP_S", 0.5)
            source.open({}, lambda: None)
            for _ in range(10):
                assert source.poll(10, 0.1) == []
            source.close()
        assert [entry["event"] for entry in told] == ["kafka_does_not_answer"]

    def test_refused_credentials_are_an_error_that_does_not_show_them(self, kafka, monkeypatch):
        monkeypatch.setattr(kafka_source, "LOOK_UP_S", 0.5)
        options = {
            **kafka.options,
            "log_level": "0",
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "hush",
            "sasl.password": "hush",
        }
        source = KafkaSource(options, KafkaTopic(topic="t"), TABLE)

        def read() -> None:
            source.open({}, lambda: None)
            for _ in range(50):
                source.poll(10, 0.1)

        with pytest.raises(SettingsError, match=r"refuses us: _AUTHENTICATION") as refused:
            read()
        source.close()
        assert "hush" not in str(refused.value)

    @pytest.mark.parametrize(
        ("name", "is_fatal", "fault"),
        [
            ("FENCED_INSTANCE_ID", True, BusyError),
            ("GROUP_AUTHORIZATION_FAILED", False, SettingsError),
            ("_STATE", True, ClusterError),
            ("_TRANSPORT", False, None),
            ("NOT_COORDINATOR", False, None),
        ],
    )
    def test_what_passes_is_told_from_what_somebody_must_mend(self, name, is_fatal, fault):
        from confluent_kafka import KafkaError

        source = KafkaSource({}, KafkaTopic(topic="t"), TABLE)
        with structlog.testing.capture_logs() as told:
            source._hear(KafkaError(getattr(KafkaError, name), "why", fatal=is_fatal))
        assert (type(source._fault) if source._fault else None) == fault
        assert bool(told) == (fault is None)

    def test_a_topic_that_is_not_there_is_an_error_with_the_nearest_offered(self):
        from confluent_kafka import KafkaError

        class Brokers:
            """The mock cluster makes each topic that it is asked for."""

            def list_topics(self, topic: str | None = None, timeout: float = 0) -> Any:
                absent = SimpleNamespace(error=KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
                known = {"orders": SimpleNamespace(error=None)}
                return SimpleNamespace(topics={topic: absent} if topic else known)

        source = KafkaSource({}, KafkaTopic(topic="order"), TABLE)
        source._consumer = Brokers()
        with pytest.raises(NotFoundError, match="did you mean 'orders'"):
            source._look_up_topic()

    def test_a_broker_that_hangs_for_a_moment_is_waited_for(self):
        script = (
            "import sys\n"
            "from mock_kafka import MockKafka\n"
            "kafka = MockKafka()\n"
            "kafka.make_topic('t')\n"
            "print(kafka.servers, flush=True)\n"
            "for line in sys.stdin:\n"
            "    kafka.send('t', {'n': line.strip()})\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[3],
            text=True,
        ) as broker:
            assert broker.stdin is not None
            assert broker.stdout is not None
            options = {"bootstrap.servers": broker.stdout.readline().strip()}
            source = KafkaSource(options, KafkaTopic(topic="t"), TABLE)
            source.open({}, lambda: None)
            events: list[Event] = []
            for number in range(2):
                broker.stdin.write(f"{number}\n")
                broker.stdin.flush()
                events += read(source, 1)
                broker.send_signal(signal.SIGSTOP)
                assert source.poll(10, 0.5) == []
                # Does not wait for the broker: other sources may have events.
                source.commit({events[-1].partition: events[-1].next_offset})
                broker.send_signal(signal.SIGCONT)
            assert [event.offset for event in events] == [0, 1]
            source.close()
            broker.kill()

    @pytest.mark.parametrize("option", sorted(OUR_OPTIONS))
    def test_what_makes_each_event_count_once_is_not_to_be_set(self, option: str):
        with pytest.raises(SettingsError, match=option):
            KafkaSource({option: "x"}, KafkaTopic(topic="t"), TABLE)

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({"sasl.pasword": "hush"}, "sasl.pasword"),
            ({"security.protocol": "hush"}, "security.protocol"),
            ({"session.timeout.ms": "hush"}, "session.timeout.ms"),
        ],
    )
    def test_an_option_that_librdkafka_refuses_is_named_and_its_value_hidden(self, options, name):
        source = KafkaSource(
            {"bootstrap.servers": "127.0.0.1:9", **options}, KafkaTopic(topic="t"), TABLE
        )
        with pytest.raises(SettingsError, match=name) as refused:
            source.open({}, lambda: None)
        assert "hush" not in str(refused.value)
