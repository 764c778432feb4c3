"""Selection of features on made-up payments in which the amount decides."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from payments import commit_payments, payments_before_the_test, settings_in
from penstock.cluster.tasks import run_here
from penstock.errors import NotFoundError, TrainingDataError, UserError
from penstock.features.build import build
from penstock.features.store import apply
from penstock.training.selection import select

STUDY_END = datetime(2018, 8, 1, tzinfo=UTC)


def payments(*, flip_after: datetime | None = None) -> pl.DataFrame:
    frame = payments_before_the_test()
    if flip_after is None:
        return frame
    late = pl.col("TX_DATETIME") >= flip_after
    return frame.with_columns(
        TX_FRAUD=pl.when(late).then(1 - pl.col("TX_FRAUD")).otherwise("TX_FRAUD")
    )


def prepared(folder, frame):
    settings = settings_in(folder)
    commit_payments(settings, frame)
    build(settings, "card_fraud")
    apply(settings)
    return settings


def chosen(settings, model, **more):
    return select(settings, model, **{"num_folds": 2, "run": run_here, **more})


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("selection"), payments())


@pytest.fixture(scope="module")
def found(settings, card_fraud_model):
    return chosen(settings, card_fraud_model)


class TestSelect:
    def test_what_decides_the_label_comes_first_and_is_kept(self, found):
        assert found.features[0].name == "TX_AMOUNT"
        assert "TX_AMOUNT" in found.kept
        assert len(found.features) == 15
        assert len(found.kept) < 8

    def test_the_folds_end_before_the_test_begins(self, found, card_fraud_model):
        delay = card_fraud_model.split.label_delay
        ends = [datetime.fromisoformat(fold.test_end) for fold in found.folds]
        assert max(ends) + delay <= card_fraud_model.split.test_start_utc

    def test_labels_from_then_on_change_nothing(self, found, card_fraud_model, tmp_path):
        other = chosen(prepared(tmp_path, payments(flip_after=STUDY_END)), card_fraud_model)
        assert other.features == found.features
        # The guard of this very test: one day earlier they do.
        day = timedelta(days=1)
        earlier = prepared(tmp_path / "earlier", payments(flip_after=STUDY_END - day))
        assert chosen(earlier, card_fraud_model).features != found.features

    def test_the_same_seed_gives_the_same_answer(self, settings, found, card_fraud_model):
        assert chosen(settings, card_fraud_model) == found

    def test_the_suggestion_holds_what_is_kept(self, found):
        text = found.suggestion
        assert all(f'"{name}"' in text for name in found.kept)
        assert not any(f'"{f.name}"' in text for f in found.features if not f.is_kept)
        assert found.training_set_id[:16] in text

    def test_top_keeps_fewer(self, settings, card_fraud_model):
        assert chosen(settings, card_fraud_model, top=1).kept == ["TX_AMOUNT"]


class TestRefusals:
    def test_one_fold_says_nothing_of_stability(self, settings, card_fraud_model):
        with pytest.raises(UserError, match="how stable"):
            chosen(settings, card_fraud_model, num_folds=1)

    def test_folds_without_both_classes_are_told(self, card_fraud_model, tmp_path):
        calm = prepared(tmp_path, payments().with_columns(TX_FRAUD=pl.lit(0, pl.Int64)))
        with pytest.raises(TrainingDataError, match="0 of 2 folds can be used"):
            chosen(calm, card_fraud_model)

    def test_an_unknown_service_is_told_with_the_nearest(self, settings, card_fraud_model):
        with pytest.raises(NotFoundError, match="did you mean 'card_fraud_v1'"):
            chosen(settings, card_fraud_model, service="card_fraud_v2")
