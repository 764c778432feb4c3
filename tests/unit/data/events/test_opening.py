from pathlib import Path

import pytest

from payments import settings_in
from penstock.data.events import JsonLinesTail, KafkaTopic, Push
from penstock.data.events.file_tail import FileTail
from penstock.data.events.kafka import KafkaSource
from penstock.data.events.merged import MergedSource
from penstock.data.events.opening import choose_sources, open_source
from penstock.data.events.pushes import PushSource
from penstock.errors import NotFoundError, SettingsError
from penstock.settings import Settings

TABLE = "shop.orders"
DECLARED = (Push(), KafkaTopic(topic="orders"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture
def with_kafka(settings: Settings) -> Settings:
    return settings.model_validate(
        {**settings.model_dump(), "kafka": {"bootstrap.servers": "127.0.0.1:9"}}
    )


class TestChooseSources:
    def test_without_a_kafka_its_topics_are_left_out_and_named(self, settings: Settings):
        chosen, left_out = choose_sources(settings, DECLARED, None)
        assert chosen == [Push()]
        assert left_out == ["the topic orders: the settings name no Kafka"]

    def test_with_a_kafka_all_are_read(self, with_kafka: Settings):
        assert choose_sources(with_kafka, DECLARED, None) == (list(DECLARED), [])

    def test_one_kind_alone(self, with_kafka: Settings):
        assert choose_sources(with_kafka, DECLARED, "kafka")[0] == [DECLARED[1]]
        assert choose_sources(with_kafka, DECLARED, "push")[0] == [Push()]

    def test_a_path_is_a_tail(self, settings: Settings):
        [tail] = choose_sources(settings, DECLARED, "some/new.jsonl")[0]
        assert tail == JsonLinesTail(path=Path("some/new.jsonl").absolute())

    @pytest.mark.parametrize("declared", [DECLARED, DECLARED[1:]])
    def test_kafka_that_is_not_set_is_refused_where_it_is_asked_for(self, settings, declared):
        with pytest.raises(SettingsError, match=r"name no Kafka.*PENSTOCK_KAFKA"):
            choose_sources(settings, declared, "kafka")

    def test_a_stream_of_a_topic_alone_needs_a_kafka(self, settings: Settings):
        with pytest.raises(SettingsError, match="name no Kafka"):
            choose_sources(settings, DECLARED[1:], None)

    @pytest.mark.parametrize(
        ("wanted", "declared"), [("pusch", DECLARED), ("x.csv", DECLARED), ("push", DECLARED[1:])]
    )
    def test_an_unknown_source_is_refused(self, settings, wanted, declared):
        with pytest.raises(NotFoundError, match=wanted):
            choose_sources(settings, declared, wanted)


class TestOpenSource:
    def test_one_source_is_itself(self, settings: Settings, tmp_path: Path):
        push = open_source(settings, TABLE, [Push()])
        assert isinstance(push, PushSource)
        push.close()
        tail = open_source(settings, TABLE, [JsonLinesTail(path=tmp_path / "x.jsonl")])
        assert isinstance(tail, FileTail)

    def test_several_are_one(self, with_kafka: Settings):
        source = open_source(with_kafka, TABLE, DECLARED)
        assert isinstance(source, MergedSource)
        assert isinstance(source._sources[1], KafkaSource)
        source.close()
