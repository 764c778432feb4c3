import shutil
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments import FIRST_DAY, TRANSACTIONS, USE_CASE, commit_payments, end_of_day, make_payments
from penstock.data import tables
from penstock.errors import BusyError, DataError, DeclarationError, IntegrityError, NotFoundError
from penstock.features.build import build
from penstock.features.historical import HistoricalReader
from penstock.features.training_set import build_training_set, read_training_set
from penstock.registry.registration import register
from penstock.registry.versions import ModelVersion
from penstock.serving import batch, slice_scorer
from penstock.serving.batch import score_table
from penstock.serving.slice_scorer import SliceScorer, prediction_ids
from penstock.settings import Settings
from penstock.training.bundle import load_native
from small_model import prepare, train_small

OUT = "card_fraud.scores"
NUM_PAYMENTS = 3_000


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, ModelVersion]:
    settings = prepare(tmp_path_factory.mktemp("scored"), num_payments=NUM_PAYMENTS)
    return settings, register(settings, train_small(settings, "run-1"))


@pytest.fixture
def model(registered: tuple[Settings, ModelVersion]) -> tuple[Settings, ModelVersion]:
    """The registered model, and no scores yet."""
    shutil.rmtree(registered[0].table_path(*OUT.split(".")), ignore_errors=True)
    return registered


def scores(settings: Settings) -> pl.DataFrame:
    return tables.scan(settings, OUT).sort("TRANSACTION_ID").collect()


def stop_before_the_commit(step, _done, _total=None, *, unit="rows"):
    if step == "write scores":
        raise KeyboardInterrupt


class TestScoreTable:
    def test_each_row_has_the_score_of_its_training_row(self, model):
        settings, version = model
        report = score_table(settings, model=version, source=TRANSACTIONS, out=OUT)
        assert (report.num_rows, report.is_new, report.out_version) == (NUM_PAYMENTS, True, 0)
        made = build_training_set(
            settings,
            use_case=USE_CASE,
            service="card_fraud_v1",
            label_table=TRANSACTIONS,
            label="TX_FRAUD",
            start=FIRST_DAY,
            end=end_of_day(60),
            extra_columns=("TRANSACTION_ID",),
        )
        rows = read_training_set(made).sort("TRANSACTION_ID")
        features = rows.select(made.feature_names).cast(float).fill_null(np.nan).to_numpy()
        expected = load_native(settings.storage_path / "runs/run-1/bundle")(features)
        got = scores(settings)
        assert got["TRANSACTION_ID"].to_list() == rows["TRANSACTION_ID"].to_list()
        assert got["TX_DATETIME"].to_list() == rows["TX_DATETIME"].to_list()
        assert np.abs(got["score"].to_numpy() - expected).max() < 1e-6
        assert got["num_missing_features"].to_list() == np.isnan(features).sum(axis=1).tolist()
        assert got["model"].unique().to_list() == ["card_fraud"]
        assert got["model_version"].unique().to_list() == [1]
        assert got["prediction_id"].n_unique() == NUM_PAYMENTS

    def test_a_score_that_is_no_finite_number_is_null_and_counted(self, model, monkeypatch):
        settings, version = model
        score_table(settings, model=version, source=TRANSACTIONS, out=OUT, end=end_of_day(9))

        def load_odd(_graph: bytes):
            odd = [np.nan, np.inf, -np.inf]
            return lambda rows: np.array([*odd, *np.full(len(rows) - len(odd), 0.5)])

        monkeypatch.setattr(slice_scorer, "load_scorer", load_odd)
        period = {"start": end_of_day(9), "end": end_of_day(19)}
        report = score_table(settings, model=version, source=TRANSACTIONS, out=OUT, **period)
        assert report.num_without_score == 3
        got = scores(settings)["score"]
        assert (got.null_count(), got.drop_nulls().is_finite().all()) == (3, True)
        again = score_table(settings, model=version, source=TRANSACTIONS, out=OUT, **period)
        assert again == report.model_copy(update={"is_new": False})

    def test_many_slices_give_the_same_scores_as_one(self, model):
        settings, version = model
        score_table(settings, model=version, source=TRANSACTIONS, out=OUT)
        whole = scores(settings)
        shutil.rmtree(settings.table_path(*OUT.split(".")))
        report = score_table(
            settings, model=version, source=TRANSACTIONS, out=OUT, rows_per_slice=400
        )
        assert report.num_slices > 5
        assert scores(settings).equals(whole)

    def test_the_same_work_again_writes_nothing(self, model):
        settings, version = model
        first = score_table(settings, model=version, source=TRANSACTIONS, out=OUT)
        again = score_table(
            settings,
            model=version,
            source=TRANSACTIONS,
            out=OUT,
            start=FIRST_DAY - timedelta(days=900),
        )
        assert again == first.model_copy(update={"is_new": False})
        assert tables.latest(settings, OUT).version == first.out_version

    def test_a_period_scores_only_its_own_rows_and_two_periods_make_the_whole(self, model):
        settings, version = model
        middle = end_of_day(29) + timedelta(minutes=17)
        parts = [
            score_table(settings, model=version, source=TRANSACTIONS, out=OUT, **period)
            for period in ({"end": middle}, {"start": middle})
        ]
        assert sum(part.num_rows for part in parts) == NUM_PAYMENTS
        got = scores(settings)
        assert got["TRANSACTION_ID"].to_list() == list(range(NUM_PAYMENTS))
        assert (got["TX_DATETIME"] < middle).sum() == parts[0].num_rows

    def test_the_version_says_what_it_was_made_from(self, model):
        settings, version = model
        report = score_table(settings, model=version, source=TRANSACTIONS, out=OUT)
        assert version.digest in tables.latest(settings, OUT).metadata["scores"]
        assert report.feature_table_versions == {
            "card_fraud.customer_windows": 0,
            "card_fraud.terminal_windows": 0,
        }
        assert report.source_version == 0

    def test_features_rebuilt_on_the_way_leave_no_score(self, model, monkeypatch):
        settings, version = model

        def rebuilt(self: HistoricalReader) -> None:
            raise BusyError("the feature tables were rebuilt while they were read")

        monkeypatch.setattr(HistoricalReader, "check_unchanged", rebuilt)
        with pytest.raises(BusyError, match="rebuilt"):
            score_table(settings, model=version, source=TRANSACTIONS, out=OUT)
        assert not tables.exists(settings, OUT)

    def test_a_slice_that_fails_ends_it_and_what_was_scored_beside_it_is_kept(
        self, model, monkeypatch
    ):
        settings, version = model
        options = {"model": version, "source": TRANSACTIONS, "out": OUT, "rows_per_slice": 400}
        begun: list[int] = []
        score = SliceScorer.score

        def score_unless_second(self: SliceScorer, number: int) -> None:
            begun.append(number)
            if number == 1:
                raise BusyError("of the second slice")
            if number > 1:
                # Time for the failure to be seen.
                time.sleep(1)
            score(self, number)

        with monkeypatch.context() as patched:
            patched.setattr(batch, "_MAX_THREADS", 2)
            patched.setattr(SliceScorer, "score", score_unless_second)
            with pytest.raises(BusyError, match="of the second slice"):
                score_table(settings, **options)
        assert not tables.exists(settings, OUT)
        report = score_table(settings, **options)
        assert len(begun) - 1 == report.num_slices_found < report.num_slices - 1
        assert scores(settings)["TRANSACTION_ID"].to_list() == list(range(NUM_PAYMENTS))

    def test_parts_of_rebuilt_features_are_left_and_computed_again(self, model, monkeypatch):
        settings, version = model
        options = {"model": version, "source": TRANSACTIONS, "out": OUT, "rows_per_slice": 400}

        with pytest.raises(KeyboardInterrupt):
            score_table(settings, **options, progress=stop_before_the_commit)
        (plan,) = (settings.storage_path / "scoring").glob("*/*")
        definition = HistoricalReader.definition
        monkeypatch.setattr(HistoricalReader, "definition", lambda self: definition(self) + "2")
        with pytest.raises(KeyboardInterrupt):
            score_table(settings, **options, progress=stop_before_the_commit)
        (other,) = (settings.storage_path / "scoring").glob("*/*")
        assert other.name != plan.name
        report = score_table(settings, **options)
        assert report.num_slices_found == report.num_slices > 1
        assert scores(settings).height == NUM_PAYMENTS
        assert list((settings.storage_path / "scoring").iterdir()) == []

    def test_a_new_version_of_the_table_takes_no_part_of_the_old_one(self, tmp_path):
        settings = prepare(tmp_path, num_payments=600)
        version = register(settings, train_small(settings, "run-1"))
        options = {"model": version, "source": TRANSACTIONS, "out": OUT, "rows_per_slice": 100}

        with pytest.raises(KeyboardInterrupt):
            score_table(settings, **options, progress=stop_before_the_commit)
        commit_payments(
            settings, make_payments(50, seed=2).with_columns(pl.col("TRANSACTION_ID") + 600)
        )
        build(settings, USE_CASE)
        report = score_table(settings, **options)
        assert (report.source_version, report.num_rows, report.num_slices_found) == (1, 650, 0)

    def test_a_spoiled_model_scores_nothing(self, model):
        settings, version = model
        file = Path(version.path) / "model.onnx"
        content = file.read_bytes()
        file.write_bytes(content[:-1] + b"\0")
        try:
            with pytest.raises(IntegrityError, match=r"model\.onnx"):
                score_table(settings, model=version, source=TRANSACTIONS, out=OUT)
        finally:
            file.write_bytes(content)
        assert not tables.exists(settings, OUT)

    def test_a_period_without_rows_is_refused(self, model):
        settings, version = model
        with pytest.raises(DataError, match="has no row"):
            score_table(
                settings, model=version, source=TRANSACTIONS, out=OUT, start=end_of_day(900)
            )

    @pytest.mark.parametrize("out", [TRANSACTIONS, "card_fraud.customer_windows"])
    def test_scores_are_never_appended_to_a_table_of_something_else(self, model, out):
        settings, version = model
        with pytest.raises(DataError, match="holds no scores"):
            score_table(settings, model=version, source=TRANSACTIONS, out=out)

    def test_an_unknown_table_is_refused_with_the_nearest_name(self, model):
        settings, version = model
        with pytest.raises(NotFoundError, match="transactions"):
            score_table(settings, model=version, source="card_fraud.transaction", out=OUT)

    def test_a_name_that_is_no_table_is_refused(self, model):
        settings, version = model
        with pytest.raises(DeclarationError, match="does not name a table"):
            score_table(settings, model=version, source=TRANSACTIONS, out="scores")


class TestSlices:
    def test_they_cover_every_row_once_and_keep_their_size(self, registered):
        settings, _ = registered
        reader = HistoricalReader(
            settings, use_case=USE_CASE, service="card_fraud_v1", table=TRANSACTIONS
        )
        times = make_payments(NUM_PAYMENTS)["TX_DATETIME"]
        for max_rows in (1, 100, 10_000):
            slices = reader.slices(None, None, max_rows=max_rows)
            assert sum(part.num_rows for part in slices) == NUM_PAYMENTS
            for part in slices:
                inside = ((times >= part.start) & (times < part.end)).sum()
                assert inside == part.num_rows
                assert inside <= max_rows or part.end - part.start == timedelta(hours=1)

    def test_a_version_that_grows_meanwhile_stays_as_it_was(self, tmp_path):
        settings = prepare(tmp_path, num_payments=200)
        reader = HistoricalReader(
            settings, use_case=USE_CASE, service="card_fraud_v1", table=TRANSACTIONS
        )
        commit_payments(settings, make_payments(50, seed=2))
        assert sum(p.num_rows for p in reader.slices(None, None, max_rows=10_000)) == 200


class TestPredictionIds:
    @pytest.mark.parametrize(
        "keys", [{"a": [1, 2]}, {"a": ["x", "y"]}, {"a": [1, None]}, {"a": [1, 1], "b": [1, 2]}]
    )
    def test_they_depend_on_the_row_the_model_and_the_table_and_nothing_else(self, keys):
        rows = pl.DataFrame(keys)
        ids = prediction_ids(rows, "digest", "t")
        assert ids.to_list() == prediction_ids(rows, "digest", "t").to_list()
        assert ids.to_list()[::-1] == prediction_ids(rows[::-1], "digest", "t").to_list()
        assert ids[0] != ids[1]
        assert ids[0] != prediction_ids(rows, "other", "t")[0]
        assert ids[0] != prediction_ids(rows, "digest", "u")[0]
        assert {len(each) for each in ids} == {32}

    @given(st.sets(st.integers(-(2**63), 2**63 - 1)))
    def test_each_number_has_its_own_and_the_same_in_any_type_that_holds_it(self, numbers):
        keys = pl.DataFrame({"a": pl.Series([*numbers], dtype=pl.Int64)})
        ids = prediction_ids(keys, "d", "t")
        assert ids.n_unique() == len(numbers)
        small = pl.col("a").is_between(-(2**31), 2**31 - 1)
        narrow = keys.filter(small).cast(pl.Int32)
        assert prediction_ids(narrow, "d", "t").equals(ids.filter(keys.select(small).to_series()))

    def test_keys_of_several_columns_never_run_into_each_other(self):
        keys = pl.DataFrame({"a": ["x", "x1:y", ""], "b": ["1:yz", "z", "x"]})
        assert prediction_ids(keys, "d", "t").n_unique() == 3
