"""From what a stream declares to the one source that it reads."""

from collections.abc import Sequence
from pathlib import Path

from penstock.data.events import DeclaredSource, EventSource, JsonLinesTail, KafkaTopic, Push
from penstock.errors import SettingsError, unknown_name
from penstock.settings import Settings

_TAIL_SUFFIXES = (".jsonl", ".ndjson")
_KINDS: dict[str, type[DeclaredSource]] = {"push": Push, "kafka": KafkaTopic}


def choose_sources(
    settings: Settings, declared: Sequence[DeclaredSource], wanted: str | None
) -> tuple[list[DeclaredSource], list[str]]:
    """Pick the sources that a stream reads.

    Args:
        settings: say whether there is a Kafka.
        declared: what the stream declares.
        wanted: `push`, `kafka`, or the path of a JSON Lines file; None: all that are declared and
            can be reached.

    Returns:
        The sources, and of each one that is left out why, in words.

    Raises:
        NotFoundError: the stream declares no such source.
        SettingsError: Kafka is wanted, and the settings name none.
    """
    if wanted is None:
        left_out = [
            f"the topic {source.topic}: the settings name no Kafka"
            for source in declared
            if isinstance(source, KafkaTopic) and not settings.kafka
        ]
        chosen = [s for s in declared if settings.kafka or not isinstance(s, KafkaTopic)]
        if not chosen:
            raise _no_kafka()
        return chosen, left_out
    if wanted not in _KINDS:
        if Path(wanted).suffix not in _TAIL_SUFFIXES:
            raise unknown_name("source", wanted, [*_KINDS, "<path>.jsonl"])
        return [JsonLinesTail(path=Path(wanted).absolute())], []
    chosen = [source for source in declared if isinstance(source, _KINDS[wanted])]
    if not chosen:
        declares = [kind for kind, of in _KINDS.items() if any(isinstance(s, of) for s in declared)]
        raise unknown_name("source of this stream", wanted, declares)
    if wanted == "kafka" and not settings.kafka:
        raise _no_kafka()
    return chosen, []


def _no_kafka() -> SettingsError:
    return SettingsError(
        "the stream reads a topic, and the settings name no Kafka",
        next_step='set kafka, for example PENSTOCK_KAFKA=\'{"bootstrap.servers": "host:9092"}\'',
    )


def open_source(settings: Settings, table: str, declared: Sequence[DeclaredSource]) -> EventSource:
    """Give the one source that all of these make together; its `open` begins to read.

    Raises:
        SettingsError: a topic is among them, and the settings name no Kafka.
    """
    sources = [_make(settings, table, source) for source in declared]
    if len(sources) == 1:
        return sources[0]
    from penstock.data.events.merged import MergedSource

    return MergedSource(sources)


def _make(settings: Settings, table: str, declared: DeclaredSource) -> EventSource:
    # Imported here: each has a vendor of its own, and none needs the others.
    if isinstance(declared, KafkaTopic):
        from penstock.data.events.kafka import KafkaSource

        if not settings.kafka:
            raise _no_kafka()
        options = {name: secret.get_secret_value() for name, secret in settings.kafka.items()}
        return KafkaSource(options, declared, table)
    if isinstance(declared, JsonLinesTail):
        from penstock.data.events.file_tail import FileTail

        return FileTail(declared)
    from penstock.data.events.push_log import PushLog
    from penstock.data.events.pushes import PushSource

    return PushSource(PushLog.of(settings), table)
