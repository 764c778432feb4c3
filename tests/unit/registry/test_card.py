from penstock.registry.agreement import Agreement
from penstock.registry.card import render_card
from penstock.registry.package import RequestField, Signature

SIGNATURE = Signature(
    model="spills",
    estimator="forest",
    use_case="dam",
    feature_service="dam_v1",
    feature_names=("level",),
    request_fields=(RequestField(name="STATION", dtype="int64"),),
    label="SPILLED",
    threshold=0.5,
)
AGREEMENT = Agreement(
    num_rows=100, num_rows_with_blanks=100, max_abs_difference=1e-8, tolerance=1e-5
)
TRAINING = {
    "run_id": "r" * 32,
    "training_set_id": "5e7",
    "metrics": {"roc_auc": 0.87, "log_loss": 0.05},
    "intervals": {"roc_auc": [0.85, 0.89]},
    "table_versions": {"dam.readings": 3},
    "declaration": {
        "primary_metric": "roc_auc",
        "intended_use": {"purpose": "to warn", "users": "wardens", "not_for": ["to open a gate"]},
        "limits": ["one river only"],
        "bootstrap": {"level": 0.9},
    },
    "slices": [
        {
            "slice": "level",
            "part": "a|b",
            "num_rows": 12,
            "num_positives": 3,
            "is_small": True,
            "metrics": {"log_loss": 0.1, "roc_auc": 0.7},
            "interval": [0.4, 0.9],
        }
    ],
    "calibration": {"mean_scores": [0.1], "mean_labels": [0.2], "num_rows": [1000]},
    "lineage": [
        {
            "table": "dam.readings",
            "version": 3,
            "num_rows": 900,
            "made_from": None,
            "sources": ["may.parquet"],
            "num_sources": 5,
        }
    ],
}


def card(training: dict) -> str:
    return render_card(SIGNATURE, training, AGREEMENT, version=2)


def test_it_says_what_was_declared_measured_and_recorded():
    text = card(TRAINING)
    for line in (
        "- for: to warn",
        "- not for: to open a gate",
        "- one river only",
        "| metric | value | 90 % interval |",
        "| roc_auc | 0.8700 | 0.8500 to 0.8900 |",
        "| log_loss | 0.0500 |  |",
        "| level | a&#124;b (small) | 12 | 3 | 0.7000 (0.4000 to 0.9000) | 0.1000 |",
        "| 0.1000 | 0.2000 | 1,000 |",
        "3. version 2 is run `rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr`",
        "    - `dam.readings` version 3, 900 rows",
        "        - source: may.parquet",
        "        - and 4 older sources",
    ):
        assert line in text.splitlines(), line


def test_what_a_run_did_not_record_is_said_or_left_out_and_never_made_up():
    text = card({"run_id": "r", "metrics": {"roc_auc": 0.87}})
    assert "not declared: say it in model.py" in text
    assert "No slices were declared" in text
    assert "| metric | value |" in text
    assert "Calibration" not in text
