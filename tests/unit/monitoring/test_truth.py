from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from feedback import AS_OF, MODEL, about, commit_predictions, post, registered
from payments import USE_CASE
from penstock.data.source_kinds import FileSource
from penstock.errors import NotFoundError
from penstock.monitoring.truth import predictions_with_truth, summarize
from penstock.serving.feedback import FeedbackIntake
from penstock.serving.feedback_collection import collect_feedback
from penstock.serving.feedback_files import FeedbackColumns, ingest_file
from penstock.serving.feedback_target import find_target
from penstock.settings import Settings

DAY = timedelta(days=1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return registered(tmp_path)


def predict(settings: Settings, *ids: str, as_of: datetime = AS_OF) -> None:
    commit_predictions(settings, *((each, {"CUSTOMER_ID": n}, as_of) for n, each in enumerate(ids)))


def tell(settings: Settings, *items: dict) -> None:
    body = {"model": MODEL, "feedback": list(items)}
    assert post(FeedbackIntake(settings), body)[0].status == 202


def item(prediction_id: str, truth: int, after: timedelta | None = None) -> dict:
    told = {"prediction_id": prediction_id, "truth": truth}
    return told if after is None else told | {"known_at": (AS_OF + after).isoformat()}


class TestPredictionsWithTruth:
    def test_every_prediction_stands_once_with_its_truth_or_null(self, settings):
        predict(settings, "a-0", "a-1")
        predict(settings, "a-0")
        tell(settings, item("a-0", 1, DAY), item("a-0", 0, 2 * DAY), item("z-0", 1))
        collect_feedback(settings, USE_CASE)
        rows = predictions_with_truth(settings, USE_CASE)
        assert isinstance(rows, pl.LazyFrame)
        told, untold = rows.sort("prediction_id").collect().to_dicts()
        assert (told["truth"], told["known_at"]) == (0.0, AS_OF + 2 * DAY)
        assert (told["num_feedback"], told["is_contradicted"]) == (2, True)
        assert (untold["prediction_id"], untold["truth"]) == ("a-1", None)
        assert untold["score"] == 0.5

    def test_feedback_that_came_before_its_prediction_finds_it_then(self, settings):
        predict(settings, "a-0")
        tell(settings, item("b-0", 1))
        assert summarize(settings, USE_CASE, label_delay=DAY).num_unmatched == 1
        predict(settings, "b-0")
        assert summarize(settings, USE_CASE, label_delay=DAY).num_unmatched == 0
        rows = predictions_with_truth(settings, USE_CASE).collect()
        assert rows.filter(pl.col("truth") == 1)["prediction_id"].to_list() == ["b-0"]

    def test_without_feedback_no_truth_is_known(self, settings):
        predict(settings, "a-0")
        assert predictions_with_truth(settings, USE_CASE).collect()["truth"].to_list() == [None]

    def test_without_predictions_there_is_nothing_to_join(self, settings):
        with pytest.raises(NotFoundError):
            predictions_with_truth(settings, USE_CASE)


class TestSummary:
    def test_it_counts_what_is_known_late_told_again_and_contradicted(self, settings, tmp_path):
        predict(settings, "a-0", "a-1", "a-2", "a-3")
        predict(settings, "b-0", as_of=AS_OF + 30 * DAY)
        # By id, by entity and time (a-2 is of customer 2), and in a file.
        tell(settings, item("a-0", 1, DAY), item("a-1", 1, 9 * DAY), item("z-0", 0, DAY))
        at = {"entity": {"CUSTOMER_ID": 2}, "event_time": AS_OF.isoformat()}
        tell(settings, at | {"truth": 0, "known_at": (AS_OF + 2 * DAY).isoformat()})
        file = tmp_path / "truths.csv"
        later = (AS_OF + 3 * DAY).isoformat()
        file.write_text(
            "prediction_id,truth,known\n"
            f"a-0,1,{(AS_OF + DAY).isoformat()}\n"
            f"a-2,1,{later}\n"
        )  # fmt: skip
        columns = FeedbackColumns(known_at="known")
        ingest_file(settings, find_target(settings, MODEL), FileSource(path=file), columns)
        now = AS_OF + 20 * DAY
        report = summarize(settings, USE_CASE, label_delay=7 * DAY, now=now)
        assert report.model_dump() == {
            "use_case": USE_CASE,
            "label_delay_s": 7 * 86_400.0,
            "num_feedback": 6,
            "num_repeated": 1,
            "num_unmatched": 1,
            "num_predictions": 5,
            "num_with_truth": 3,
            "num_due": 4,
            "num_due_with_truth": 3,
            "num_contradicted": 1,
            "num_late": 1,
            "delay_s": {
                "0.5": 3 * 86_400.0,
                "0.9": pytest.approx(7.8 * 86_400),
                "0.99": pytest.approx(8.88 * 86_400),
            },
        }
        assert report.coverage == 0.6

    def test_of_nothing_it_says_nothing(self, settings):
        report = summarize(settings, USE_CASE, label_delay=DAY)
        assert (report.num_predictions, report.num_feedback, report.delay_s) == (0, 0, {})
        assert report.coverage is None

    def test_feedback_without_any_prediction_is_kept_and_unmatched(self, settings):
        post(FeedbackIntake(settings), about("a-0", "a-1"))
        report = summarize(settings, USE_CASE, label_delay=DAY)
        assert (report.num_feedback, report.num_unmatched) == (2, 2)
