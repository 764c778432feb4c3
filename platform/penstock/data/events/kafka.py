"""A Kafka topic as a source of events: the table's positions rule, the group's only tell."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from penstock.data.events import MAX_EVENT_BYTES, Event, KafkaTopic
from penstock.errors import BusyError, ClusterError, DataError, SettingsError, unknown_name
from penstock.logs import redact

OUR_OPTIONS = frozenset(
    {
        "auto.offset.reset",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "group.id",
        "group.instance.id",
    }
)
"""What makes each event count once is not for the settings to change."""
_DEFAULTS = {
    # A broker's least: so soon a stream that was killed with its host is out of the group.
    "session.timeout.ms": "6000",
    "heartbeat.interval.ms": "1500",
    "reconnect.backoff.max.ms": "2000",
    "client.id": "penstock",
    # It would say each failed attempt on stderr; an outage is told by us, once.
    "log_level": "2",
}
LOOK_UP_S = 10.0
_SECRET_NAMES = re.compile("password|secret|key|token|username|oauth|config")

log = structlog.get_logger()


class KafkaSource:
    """Reads a topic as a static member of its group: who starts again is the same member.

    The same member gets its partitions back at once; a dead one's session need not run out first.
    Where two live under its name, the broker shuts the older one out.
    """

    def __init__(self, options: Mapping[str, str], declared: KafkaTopic, table: str) -> None:
        """Prepare; nothing is connected.

        Args:
            options: librdkafka's, by name. They hold credentials and are never shown.
            declared: the topic.
            table: the table that its events are for.
        """
        self._topic = declared.topic
        self._group = declared.group or f"penstock-{table}"
        refused = sorted(OUR_OPTIONS & options.keys())
        if refused:
            raise SettingsError(
                f"the setting kafka has {', '.join(refused)}, which the stream sets by itself",
                next_step="leave it out; a group is declared with the topic",
            )
        self._options = dict(options)
        self._consumer: Any = None
        self._positions: dict[int, int] = {}
        self._assigned: set[int] = set()
        self._has_joined = False
        self._early: list[Any] = []
        self._before_revoke: Callable[[], None] = lambda: None
        self._fault: Exception | None = None
        self._told: set[str] = set()

    def open(self, positions: Mapping[str, int], before_revoke: Callable[[], None]) -> None:
        """Join the group, and wait a while for its partitions: a group takes seconds to form.

        Raises:
            SettingsError: librdkafka refuses an option, or the broker the credentials.
            NotFoundError: the brokers answer, and have no such topic.
        """
        prefix = self._partition("")
        self._positions = {
            int(name.removeprefix(prefix)): offset
            for name, offset in positions.items()
            if name.startswith(prefix)
        }
        self._before_revoke = before_revoke
        self._consumer = _consumer(
            {
                **_DEFAULTS,
                **self._options,
                "group.id": self._group,
                "group.instance.id": self._group,
                "enable.auto.commit": "false",
                "enable.auto.offset.store": "false",
                # Events that the broker has dropped are lost: that is an error, not a reset.
                "auto.offset.reset": "error",
                "error_cb": self._hear,
                "on_commit": self._hear_of_commit,
            }
        )
        self._look_up_topic()
        self._consumer.subscribe(
            [self._topic], on_assign=self._take, on_revoke=self._give, on_lost=self._give
        )
        deadline_s = time.monotonic() + LOOK_UP_S
        while not self._has_joined and time.monotonic() < deadline_s:
            message = self._consumer.poll(0.1)
            self._early += [] if message is None else [message]
            self._raise_fault()

    def poll(self, max_events: int, wait_s: float) -> list[Event]:
        """Give what has arrived; takes part in the group's rebalances.

        Raises:
            DataError: the broker no longer has what comes after the table's position.
            BusyError: another process reads under this one's name in the group.
            SettingsError: the broker refuses the credentials.
        """
        deadline_s = time.monotonic() + wait_s
        events: list[Event] = []
        while not events:
            messages, self._early = self._early, []
            if not messages:
                first = self._consumer.poll(max(0.0, deadline_s - time.monotonic()))
                messages = [] if first is None else [first]
            if messages and max_events > 1:
                # `consume` alone would wait for as many as it may give.
                messages += self._consumer.consume(max_events - 1, 0)
            self._raise_fault()
            events = self._events(messages)
            if time.monotonic() >= deadline_s:
                break
        return events

    def commit(self, positions: Mapping[str, int]) -> None:
        """Tell the group, for those who watch its lag; the table's positions are what counts.

        Without waiting: while brokers are away, other sources have events.
        """
        from confluent_kafka import TopicPartition

        ours = {self._partition(n): n for n in self._assigned}
        offsets = [
            TopicPartition(self._topic, ours[name], offset)
            for name, offset in positions.items()
            if name in ours
        ]
        if offsets:
            self._consumer.commit(offsets=offsets, asynchronous=True)

    def lag(self) -> int | None:
        """Events between our positions and the ends that the broker told of last."""
        from confluent_kafka import TopicPartition

        total = 0
        for number in self._assigned:
            place = TopicPartition(self._topic, number)
            low, high = self._consumer.get_watermark_offsets(place, cached=True)
            if high < 0:
                return None
            total += max(0, high - max(self._positions.get(number, 0), low))
        return total if self._assigned else None

    def close(self) -> None:
        """Leave the brokers; the group keeps our place until the session runs out."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            self._before_revoke = lambda: None
            consumer.close()

    def _partition(self, number: int | str) -> str:
        # With the group: declared under another one, a topic is read from its begin.
        return f"kafka:{self._group}/{self._topic}/{number}"

    def _events(self, messages: Sequence[Any]) -> list[Event]:
        events = []
        for message in messages:
            if message.error() is not None:
                self._judge(message.error(), message)
                continue
            number, offset = message.partition(), message.offset()
            # A rebalance in the middle of a call: what it took from us, or gives a second time.
            if number not in self._assigned or offset < self._positions.get(number, 0):
                continue
            self._positions[number] = offset + 1
            value = (message.value() or b"")[:MAX_EVENT_BYTES]
            events.append(Event(self._partition(number), offset, offset + 1, value))
            self._told.clear()
        return events

    def _take(self, consumer: Any, partitions: Sequence[Any]) -> None:
        from confluent_kafka import OFFSET_BEGINNING

        for place in partitions:
            # What was polled before a rebalance counts too: the stream still has it in its hands.
            place.offset = self._positions.get(place.partition, OFFSET_BEGINNING)
        self._assigned = {place.partition for place in partitions}
        self._has_joined = True
        consumer.assign(list(partitions))

    def _give(self, _consumer: Any, _partitions: Sequence[Any]) -> None:
        try:
            self._before_revoke()
        finally:
            self._assigned = set()

    def _hear(self, error: Any) -> None:
        self._judge(error, None)

    def _hear_of_commit(self, error: Any, _partitions: Any) -> None:
        if error is not None:
            self._tell("commit", self._shown(error))

    def _judge(self, error: Any, message: Any) -> None:
        """Tell an outage that passes from a fault that somebody must mend."""
        from confluent_kafka import KafkaError

        code = error.code()
        if code == KafkaError._AUTO_OFFSET_RESET:
            self._fault = self._dropped(message)
        elif code in (KafkaError._FENCED, KafkaError.FENCED_INSTANCE_ID):
            self._fault = BusyError(
                f"another process reads {self._topic} as {self._group}",
                next_step="one stream a table: end one of the two",
            )
        elif code in (
            KafkaError._AUTHENTICATION,
            KafkaError.SASL_AUTHENTICATION_FAILED,
            KafkaError.TOPIC_AUTHORIZATION_FAILED,
            KafkaError.GROUP_AUTHORIZATION_FAILED,
        ):
            self._fault = SettingsError(
                f"Kafka refuses us: {self._shown(error)}",
                next_step="mend the credentials in the setting kafka",
            )
        elif error.fatal():
            self._fault = ClusterError(
                f"Kafka's client cannot go on: {self._shown(error)}",
                next_step="start the stream again; nothing is lost",
            )
        else:
            self._tell("read", self._shown(error))

    def _dropped(self, message: Any) -> DataError:
        number = message.partition() if message is not None else min(self._assigned, default=0)
        position = self._positions.get(number, 0)
        low, high = self._ends(number)
        found = f"{self._topic} partition {number} no longer has the event at offset {position}"
        if position > high >= 0:
            found += f": it ends at {high}, so the topic was made anew"
        elif low > position:
            found += f": the broker has dropped all below {low}"
        return DataError(
            found,
            next_step="bring what is missing by `penstock data ingest`, then declare the topic "
            "with another group: it is read from its begin, and what the table has is passed over",
        )

    def _ends(self, number: int) -> tuple[int, int]:
        from confluent_kafka import KafkaException, TopicPartition

        try:
            ends = self._consumer.get_watermark_offsets(
                TopicPartition(self._topic, number), timeout=LOOK_UP_S
            )
        except KafkaException:
            ends = None
        return (-1, -1) if ends is None else ends

    def _look_up_topic(self) -> None:
        from confluent_kafka import KafkaError, KafkaException

        try:
            found = self._consumer.list_topics(self._topic, timeout=LOOK_UP_S)
            error = found.topics[self._topic].error
            if error is None:
                return
            if error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                self._judge(error, None)
            else:
                known = self._consumer.list_topics(timeout=LOOK_UP_S).topics
                raise unknown_name("topic", self._topic, known.keys() - {self._topic})
        except KafkaException as exception:
            self._judge(exception.args[0], None)
        self._raise_fault()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _shown(self, error: Any) -> str:
        """What an error says, without any value of ours that could be a secret."""
        text = f"{error.name()}: {error.str()}"
        for name, value in self._options.items():
            if _SECRET_NAMES.search(name) and value:
                text = text.replace(value, "***")
        return redact(text)

    def _tell(self, what: str, reason: str) -> None:
        """Say an outage once; librdkafka goes on trying."""
        if what not in self._told:
            self._told.add(what)
            log.warning("kafka_does_not_answer", topic=self._topic, step=what, reason=reason)


def _consumer(options: Mapping[str, Any]) -> Any:
    try:
        from confluent_kafka import Consumer, KafkaException
    except ImportError as error:
        raise SettingsError(
            f"reading from Kafka needs the package confluent-kafka ({error.name} is missing)",
            next_step="install penstock[kafka]",
        ) from None
    try:
        return Consumer(dict(options))
    except KafkaException as error:
        raise _refused(error.args[0], options) from None


def _refused(error: Any, options: Mapping[str, Any]) -> SettingsError:
    """Explain a refusal without the values of the options, which librdkafka quotes."""
    named = [name for name in options if f'"{name}"' in str(error.str())]
    return SettingsError(
        f"librdkafka refuses the setting kafka{f' at {named[0]}' if named else ''}",
        allowed="its options by name, as its CONFIGURATION.md lists them",
    )
