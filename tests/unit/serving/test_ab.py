"""Predictions and feedback in real tables, and what an A/B makes of them."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployed import deployment, version
from feedback import registered
from payments import USE_CASE
from penstock.data import tables
from penstock.errors import BusyError, UserError
from penstock.registry.package import verify
from penstock.serving import ab
from penstock.serving.ab import Compared, Looks, check_plan, in_arms, weigh
from penstock.serving.feedback_collection import FEEDBACK, append
from penstock.serving.log_collection import SERVED_AT, predictions_table
from penstock.serving.rollout import NUM_BUCKETS, RolloutPlan, bucket
from penstock.serving.rollout_files import Rollout, Stretch
from penstock.settings import Settings
from waiting import wait_for

START = datetime(2026, 5, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
COMPARED = Compared(use_case=USE_CASE, thresholds={1: 0.5, 2: 0.5}, is_split_by_bool=False)


def rollout_of(path: Path = Path("p"), **changes: Any) -> Rollout:
    plan = RolloutPlan(
        model="card_fraud",
        mode="ab",
        from_version=1,
        to_version=2,
        shares_percent=(50,),
        hold_s=3_600,
        split_by="CUSTOMER_ID",
        outcome="brier",
    )
    made = Rollout(
        id="r1",
        plan=plan,
        old=deployment(version(path, 1)),
        new=deployment(version(path, 2)),
        phase="shifting",
        share_percent=50.0,
        stage_started_at=START,
        watched_at=START,
    )
    return made.model_copy(update=changes)


def is_new(customer: object) -> bool:
    return bucket("r1", customer) < NUM_BUCKETS / 2


def answered(
    request: str, *customers: object, by: int | None = None, at: datetime = START + MINUTE
) -> list[dict[str, Any]]:
    """The rows of one request, answered by the arm of its first one or by a version."""
    by = by if by is not None else 1 + is_new(customers[0])
    return [
        {
            "prediction_id": f"{request}-{number}",
            "model": "card_fraud",
            "model_version": by,
            "request": orjson.dumps({"CUSTOMER_ID": customer}).decode(),
            "as_of": at,
            SERVED_AT: at,
            "score": 0.9 if by == 2 else 0.4,
        }
        for number, customer in enumerate(customers)
    ]


def commit(settings: Settings, rows: Sequence[dict[str, Any]], truth: float | None = 1.0) -> None:
    frame = pl.DataFrame(
        rows,
        schema_overrides={name: pl.Datetime("us", "UTC") for name in ("as_of", SERVED_AT)},
    )
    tables.commit(
        settings,
        predictions_table(USE_CASE),
        frame,
        mode="append",
        partition_by="day",
        event_time=SERVED_AT,
    )
    if truth is None:
        return
    told = frame.select(
        "prediction_id",
        truth=pl.lit(truth),
        known_at=pl.lit(START),
        received_at=pl.lit(START),
        source=pl.lit("a test"),
    )
    missing = {name: kind for name, kind in FEEDBACK.items() if name not in told.columns}
    rows_told = told.with_columns(pl.lit(None, dtype=k).alias(n) for n, k in missing.items())
    append(settings, USE_CASE, rows_told.select(FEEDBACK.names()), rows[0]["prediction_id"], 1)


class TestInArms:
    @staticmethod
    def arms(rows: Sequence[dict[str, Any]], *, is_split_by_bool: bool = False) -> pl.DataFrame:
        frame = pl.DataFrame(rows).with_columns(truth=pl.lit(1.0))
        return in_arms(frame, rollout_of(), is_split_by_bool=is_split_by_bool)

    @given(
        st.lists(
            st.one_of(
                st.integers(-(2**63), 2**63 - 1),
                st.text(st.characters(exclude_categories=("Cs",)), max_size=9),
            ),
            min_size=1,
            unique_by=str,
        )
    )
    def test_a_value_is_in_the_arm_that_replicas_put_it_in(self, customers: list[object]):
        rows = [row for n, each in enumerate(customers) for row in answered(f"q{n}", each)]
        found = dict(self.arms(rows).select("prediction_id", "is_new").rows())
        assert found == {f"q{n}-0": is_new(each) for n, each in enumerate(customers)}

    def test_truth_values_are_hashed_as_replicas_do(self):
        rows = answered("a", True) + answered("b", False)
        found = self.arms(rows, is_split_by_bool=True).select("prediction_id", "is_new").rows()
        assert dict(found) == {"a-0": is_new(True), "b-0": is_new(False)}

    def test_all_rows_of_a_request_are_of_its_first_rows_unit(self):
        (unit,) = self.arms(answered("a", 1, 2, 3))["unit"].unique()
        assert unit == "1"

    def test_what_the_old_version_answers_for_the_new_one_still_is_the_new_ones(self):
        failed = next(customer for customer in range(99) if is_new(customer))
        assert self.arms(answered("a", failed, by=1))["is_new"].to_list() == [True]

    def test_who_asked_for_the_new_version_by_its_number_is_left_out(self):
        other = next(customer for customer in range(99) if not is_new(customer))
        assert self.arms(answered("a", other, by=2)).is_empty()


class TestWeigh:
    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return registered(tmp_path)

    @staticmethod
    def weighed(settings: Settings, rollout: Rollout | None = None) -> Any:
        return weigh(settings, rollout or rollout_of(), COMPARED, now=START + 60 * MINUTE)

    def test_truths_decide_once_there_are_enough(self, settings: Settings):
        rows = [row for n in range(400) for row in answered(f"q{n}", n, n)]
        commit(settings, rows)
        commit(settings, answered("untold", 7), truth=None)
        found = self.weighed(settings)
        num_new = sum(map(is_new, range(400)))
        assert (found.new.num_units, found.new.num_outcomes) == (num_new, 2 * num_new)
        assert found.num_predictions_new + found.num_predictions_old == 801
        assert found.new.mean == pytest.approx(0.01)
        assert found.old.mean == pytest.approx(0.36)
        assert found.is_new_better is True
        assert found.looked_s == 3_600

    def test_where_nothing_was_ever_predicted_nothing_is_known(self, settings: Settings):
        found = self.weighed(settings)
        assert (found.num_predictions_new, found.comparison) == (0, None)

    def test_only_what_was_served_while_somebody_watched_counts(self, settings: Settings):
        gap = rollout_of(
            stretches=(Stretch(since=START, until=START + 10 * MINUTE),),
            stage_started_at=START + 20 * MINUTE,
        )
        for minute in (-1, 0, 5, 15, 20, 25):
            commit(settings, answered(f"at{minute}", 3, at=START + minute * MINUTE), None)
        found = self.weighed(settings, gap)
        assert found.num_predictions_new + found.num_predictions_old == 2

    def test_other_models_and_versions_do_not_count(self, settings: Settings):
        other_model = [{**row, "model": "another"} for row in answered("a", 1)]
        commit(settings, other_model + answered("b", 1, by=7), None)
        found = self.weighed(settings)
        assert found.num_predictions_new + found.num_predictions_old == 0


class TestCheckPlan:
    @staticmethod
    def check(settings: Settings, **changes: Any) -> None:
        package = verify(settings.models_path / "card_fraud" / "2", settings)
        plan = rollout_of().plan.model_copy(update=changes)
        check_plan(settings, plan, new=package, old=package)

    @pytest.fixture
    def settings(self, tmp_path: Path) -> Settings:
        return registered(tmp_path, number=2)

    def test_what_can_be_decided_passes(self, settings: Settings):
        self.check(settings)
        self.check(settings, split_by="CITY")

    @pytest.mark.parametrize("field", ["TX_AMOUNT", "TX_DATETIME"])
    def test_a_field_that_names_nobody_is_refused(self, settings: Settings, field: str):
        with pytest.raises(UserError, match="CUSTOMER_ID, CITY, IS_NEW"):
            self.check(settings, split_by=field)

    def test_an_outcome_of_another_task_is_refused(self, settings: Settings):
        with pytest.raises(UserError, match="its truth is 0 or 1"):
            self.check(settings, outcome="absolute_error")

    def test_without_a_log_of_predictions_nothing_would_be_decided(self, settings: Settings):
        serving = settings.serving.model_copy(update={"log_predictions": False})
        with pytest.raises(UserError, match="predictions are not logged"):
            self.check(settings.model_copy(update={"serving": serving}))


class TestLooks:
    @pytest.fixture
    def looks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Looks:
        monkeypatch.setattr(Compared, "of", lambda *_: COMPARED)
        return Looks(registered(tmp_path), rollout_of())

    @staticmethod
    def ask(looks: Looks, held_s: float) -> Any:
        found = looks.ask(rollout_of(), held_s)
        wait_for(lambda: looks._under_way is None or looks._under_way.done())
        return found

    def test_one_begins_at_once_and_the_next_after_a_while(self, looks: Looks):
        assert self.ask(looks, 0.0) is None
        assert self.ask(looks, 1.0).num_predictions_new == 0
        assert self.ask(looks, 2.0) is None
        assert looks._under_way is None
        self.ask(looks, 40.0)
        assert looks._under_way is not None

    def test_one_that_fails_is_told_of_and_tried_again(self, looks: Looks, monkeypatch):
        def fails(*_: object) -> None:
            raise BusyError("another collects")

        monkeypatch.setattr(ab, "look", fails)
        self.ask(looks, 0.0)
        assert self.ask(looks, 1.0) is None
        assert "another collects" in looks.problem
        monkeypatch.undo()
        self.ask(looks, 40.0)
        assert self.ask(looks, 41.0) is not None
        assert looks.problem is None

    def test_when_the_time_is_over_one_last_look_begins_at_once(self, looks: Looks):
        over_s = rollout_of().plan.hold_s
        self.ask(looks, over_s - 1)
        self.ask(looks, over_s)
        assert not looks.has_looked_since(over_s)
        self.ask(looks, over_s + 1)
        self.ask(looks, over_s + 2)
        assert looks.has_looked_since(over_s)
