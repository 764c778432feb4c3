"""What was measured on folds, beside the published numbers."""

from datetime import UTC, datetime, timedelta

from penstock.training.fold_results import collect_folds, folds_to_markdown
from penstock.training.results import collect, put_section
from penstock.training.tracking import ESTIMATOR_TAG, FOLD_ROWS_TAG, FOLDS_TAG, FinishedRun


def finished(estimator, minutes, **metrics):
    return FinishedRun(
        run_id=f"{estimator}-{minutes}",
        started=datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes),
        metrics={
            "fit_s": 6.0,
            "roc_auc": 0.861,
            "roc_auc_deviation": 0.012,
            "roc_auc_low": 0.842,
            "roc_auc_high": 0.88,
            **metrics,
        },
        params={"folds": "prequential", "num_folds": "3", "interval_level": "0.95"},
        tags={
            ESTIMATOR_TAG: estimator,
            FOLDS_TAG: "time is respected",
            FOLD_ROWS_TAG: "trained on May, tested June",
        },
    )


def test_the_newest_measurement_of_each_estimator_counts_and_a_training_is_none(card_fraud_model):
    counts = {f"num_{n}_rows": "9" for n in ("training", "test")}
    training = finished("mlp", 9).model_copy(
        update={"tags": {ESTIMATOR_TAG: "mlp"}, "params": counts}
    )
    runs = [
        finished("xgboost", 2, roc_auc=0.9),
        finished("xgboost", 1),
        finished("logistic_regression", 3),
        training,
    ]
    found = collect_folds(card_fraud_model, runs)
    assert [each.run_id for each in found] == ["logistic_regression-3", "xgboost-2"]
    assert found[1].intervals == {"roc_auc": (0.842, 0.88)}
    assert found[1].fit_s == 2.0
    assert [each.run_id for each in collect(card_fraud_model, runs)] == ["mlp-9"]


def test_mean_deviation_and_interval_stand_beside_the_published_mean(card_fraud_model):
    # The published XGBoost was a tuned one.
    found = collect_folds(card_fraud_model, [finished("xgboost_tuned", 1)])
    page = folds_to_markdown(card_fraud_model, found)
    assert page.startswith("# Results: card_fraud on folds\n")
    assert "3 prequential folds (time is respected): trained on May, tested June." in page
    assert "| xgboost_tuned | 0.861 ± 0.012 [0.842, 0.880] (0.869) | - | - |" in page
    assert "a fourth one" in page


def test_it_is_a_section_of_its_own_beside_the_models(card_fraud_model):
    found = collect_folds(card_fraud_model, [finished("xgboost", 1)])
    own = "# Results: card_fraud\n\n| kept |\n"
    page = put_section(put_section(own, folds_to_markdown(card_fraud_model, found)), own)
    assert page.startswith(own)
    assert page.count("# Results: ") == 2
