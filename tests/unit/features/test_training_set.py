import shutil
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from payments import (
    FIRST_DAY,
    SERVICE,
    TRANSACTIONS,
    USE_CASE,
    commit_payments,
    end_of_day,
    make_payments,
    settings_in,
)
from penstock.data import tables
from penstock.errors import (
    BusyError,
    DeclarationError,
    IntegrityError,
    NotFoundError,
    TrainingDataError,
    UserError,
)
from penstock.features import training_set as training_set_module
from penstock.features.build import build
from penstock.features.service_join import ServiceJoin
from penstock.features.store import apply
from penstock.features.training_set import (
    build_training_set,
    content_digest,
    explain,
    read_training_set,
)
from real_data import card_fraud_files, reference_features

LAST = end_of_day(59)


QUESTION = {
    "use_case": USE_CASE,
    "service": SERVICE,
    "label_table": TRANSACTIONS,
    "label": "TX_FRAUD",
    "start": FIRST_DAY,
    "end": LAST,
    "extra_columns": ["TRANSACTION_ID"],
}


def training_set(settings, start=FIRST_DAY, end=LAST, **changes):
    return build_training_set(settings, **(QUESTION | {"start": start, "end": end} | changes))


def prepared_from(tmp_path, payments: pl.DataFrame):
    settings = settings_in(tmp_path)
    commit_payments(settings, payments)
    build(settings, USE_CASE)
    apply(settings)
    return settings


class TestBuildTrainingSet:
    def test_it_has_every_label_row_of_the_period_once_and_in_time_order(self, online_settings):
        start, end = end_of_day(20), end_of_day(25)
        rows = read_training_set(training_set(online_settings, start, end))
        expected = (
            tables.scan(online_settings, TRANSACTIONS)
            .filter((pl.col("TX_DATETIME") >= start) & (pl.col("TX_DATETIME") < end))
            .sort("TX_DATETIME")
            .collect()
        )
        assert rows["TRANSACTION_ID"].to_list() == expected["TRANSACTION_ID"].to_list()
        assert rows["TX_FRAUD"].to_list() == expected["TX_FRAUD"].to_list()

    def test_keys_time_extras_and_label_come_before_the_features(self, online_settings):
        made = training_set(online_settings)
        columns = read_training_set(made).columns
        assert columns[:5] == [
            "CUSTOMER_ID",
            "TERMINAL_ID",
            "TX_DATETIME",
            "TRANSACTION_ID",
            "TX_FRAUD",
        ]
        assert tuple(columns[5:]) == made.feature_names

    def test_the_same_question_has_the_same_answer_and_is_stored_once(self, online_settings):
        first, second = training_set(online_settings), training_set(online_settings)
        assert first == second
        other = training_set(online_settings, end=end_of_day(58))
        assert other.id != first.id

    def test_another_storage_with_the_same_rows_gives_the_same_id(self, prepared, tmp_path):
        another = prepared_from(tmp_path / "another", make_payments(600))
        assert training_set(another).id == training_set(prepared).id

    def test_an_older_version_of_the_labels_can_be_asked_for(self, tmp_path):
        payments = make_payments(300)
        settings = prepared_from(tmp_path, payments[:200])
        commit_payments(settings, payments[200:])
        made = training_set(settings, version=0)
        assert (made.num_rows, made.table_versions[TRANSACTIONS]) == (200, 0)
        build(settings, USE_CASE)
        assert training_set(settings).num_rows == 300

    def test_rows_that_came_after_the_last_build_are_not_joined_without_their_features(
        self, prepared
    ):
        more = make_payments(700)[600:]
        commit_payments(prepared, more)
        with pytest.raises(UserError, match=r"version 0 of .* run `penstock features build"):
            training_set(prepared)
        assert training_set(prepared, version=0).num_rows == 600
        build(prepared, USE_CASE)
        assert training_set(prepared).num_rows == 700

    def test_a_version_that_added_no_row_asks_for_no_build(self, prepared):
        commit_payments(prepared, make_payments(1)[:0])
        assert training_set(prepared).table_versions[TRANSACTIONS] == 1

    def test_it_names_the_version_of_each_table_that_it_read(self, online_settings):
        assert training_set(online_settings).table_versions == {
            "card_fraud.customer_windows": 0,
            "card_fraud.terminal_windows": 0,
            TRANSACTIONS: 0,
        }

    def test_an_earlier_set_is_built_again_from_the_versions_that_it_names(self, prepared):
        earlier = training_set(prepared)
        shutil.rmtree(earlier.path)
        commit_payments(prepared, make_payments(700)[600:])
        build(prepared, USE_CASE)
        assert training_set(prepared).id != earlier.id
        assert training_set(prepared, table_versions=earlier.table_versions) == earlier
        store = prepared.feature_store.model_copy(update={"join_memory_bytes": 100_000})
        spread = prepared.model_copy(update={"feature_store": store})
        shutil.rmtree(earlier.path)
        assert training_set(spread, table_versions=earlier.table_versions) == earlier

    def test_a_version_that_is_gone_or_not_named_is_refused(self, prepared):
        versions = training_set(prepared).table_versions
        with pytest.raises(NotFoundError, match="no version 9"):
            training_set(prepared, table_versions=versions | {"card_fraud.terminal_windows": 9})
        with pytest.raises(NotFoundError, match="among the named versions"):
            training_set(prepared, table_versions={TRANSACTIONS: 0})

    def test_a_set_that_was_damaged_is_not_used_again(self, prepared):
        made = training_set(prepared)
        (file,) = Path(made.path).glob("data-*.parquet")
        data = bytearray(file.read_bytes())
        # Among the values: in a page's header a flip may change nothing.
        data[len(data) // 3] ^= 1
        file.write_bytes(data)
        with pytest.raises(IntegrityError, match=made.id[:12]):
            read_training_set(made)
        with pytest.raises(IntegrityError, match="build it again"):
            training_set(prepared)
        shutil.rmtree(made.path)
        assert training_set(prepared) == made

    def test_what_a_killed_run_left_behind_does_no_harm(self, prepared):
        made = training_set(prepared)
        unfinished = Path(made.path).parent / ".unfinished"
        (unfinished / "dead").mkdir()
        Path(made.path).rename(unfinished / "dead" / "set")
        (unfinished / "dead" / "set" / "data-00000.parquet").write_bytes(b"half")
        assert training_set(prepared) == made
        assert read_training_set(made).height == 600
        assert [path for path in unfinished.iterdir() if path.is_dir()] == []

    def test_one_task_and_many_make_the_very_same_set(self, prepared, monkeypatch):
        monkeypatch.setattr(training_set_module, "_ROWS_PER_FILE", 100)
        one = training_set(prepared)
        assert len(list(Path(one.path).glob("data-*.parquet"))) > 3
        rows = read_training_set(one)
        shutil.rmtree(one.path)
        store = prepared.feature_store.model_copy(update={"join_memory_bytes": 100_000})
        spread = prepared.model_copy(update={"feature_store": store})
        assert explain(spread, **QUESTION).path.kind == "distributed"
        many = training_set(spread)
        assert many == one
        assert read_training_set(many).equals(rows)

    def test_the_path_is_explained(self, prepared):
        found = explain(prepared, **QUESTION)
        assert found.path.kind == "one task"
        assert found.labels.num_rows == 600
        assert "600 label rows" in found.path.reason

    def test_a_build_in_between_is_noticed_and_the_join_done_again(
        self, online_settings, monkeypatch
    ):
        original, calls = ServiceJoin.source_versions, []

        def rebuilt_once(self, settings):
            calls.append(1)
            versions = original(self, settings)
            return versions if len(calls) > 1 else dict.fromkeys(versions, -1)

        monkeypatch.setattr(ServiceJoin, "source_versions", rebuilt_once)
        assert training_set(online_settings).table_versions["card_fraud.customer_windows"] == 0
        assert len(calls) == 4

    def test_builds_without_end_are_not_waited_for(self, online_settings, monkeypatch):
        calls = []

        def rebuilt_each_time(_self, _settings):
            calls.append(1)
            return {"card_fraud.customer_windows": len(calls)}

        monkeypatch.setattr(ServiceJoin, "source_versions", rebuilt_each_time)
        with pytest.raises(BusyError, match="rebuilt while"):
            training_set(online_settings)

    def test_a_period_without_rows_is_refused(self, online_settings):
        with pytest.raises(TrainingDataError, match="no row from 2030"):
            training_set(
                online_settings, datetime(2030, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)
            )

    def test_an_unknown_label_is_refused_with_the_nearest_column(self, online_settings):
        with pytest.raises(NotFoundError, match="did you mean 'TX_FRAUD'"):
            training_set(online_settings, label="TX_FRAUDS")

    def test_a_feature_cannot_be_an_extra_column_too(self, online_settings):
        with pytest.raises(DeclarationError, match="TX_AMOUNT"):
            training_set(online_settings, extra_columns=["TX_AMOUNT"])

    def test_views_that_were_not_applied_are_refused(self, tmp_path):
        settings = settings_in(tmp_path)
        commit_payments(settings, make_payments(50))
        build(settings, USE_CASE)
        with pytest.raises(UserError, match="features apply"):
            training_set(settings)


class TestContentDigest:
    FRAME = pl.DataFrame({"a": [1, None, 3], "b": [0.5, float("nan"), None], "c": ["x", "", None]})

    def test_how_a_frame_is_held_does_not_matter(self):
        chunked = pl.concat([self.FRAME[:1], self.FRAME[1:]], rechunk=False)
        assert content_digest(chunked) == content_digest(self.FRAME)

    @pytest.mark.parametrize(
        "other",
        [
            FRAME.rename({"a": "z"}),
            FRAME.with_columns(pl.col("a").cast(pl.Int32)),
            FRAME.with_columns(pl.col("a").fill_null(0)),
            FRAME.with_columns(pl.col("c").fill_null("")),
            FRAME.with_columns(c=pl.Series(["", "x", None])),
            FRAME.reverse(),
        ],
    )
    def test_any_other_content_has_another_digest(self, other):
        assert content_digest(other) != content_digest(self.FRAME)


class TestPublishedValues:
    def test_the_training_week_is_the_published_one(self, tmp_path):
        # The widest window, moved by the delay, begins 37 days before the week: in June.
        files = card_fraud_files("2018-06", "2018-07")
        payments = pl.concat([pl.read_parquet(file) for file in files]).with_columns(
            pl.col("TX_DATETIME").dt.replace_time_zone("UTC")
        )
        settings = prepared_from(tmp_path, payments)
        made = training_set(
            settings, datetime(2018, 7, 25, tzinfo=UTC), datetime(2018, 8, 1, tzinfo=UTC)
        )
        rows = read_training_set(made)
        assert (rows.height, rows["TX_FRAUD"].sum()) == (67_240, 598)
        published = pl.concat([pl.read_parquet(file) for file in reference_features()[:1]])
        same_second = pl.len().over("CUSTOMER_ID", "TX_DATETIME") > 1
        pairs = rows.filter(~same_second).join(published, on="TRANSACTION_ID", suffix="_published")
        assert pairs.height > 67_200
        names = [name for name in made.feature_names if name != "TX_AMOUNT"]
        assert len(names) == 14
        assert_frame_equal(
            pairs.select(pl.col(names).cast(pl.Float64)),
            pairs.select(
                pl.col(f"{name}_published").cast(pl.Float64).alias(name) for name in names
            ),
            abs_tol=1e-6,
            rel_tol=0,
        )
