"""What a use case may declare about its model."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from penstock.errors import DeclarationError, NotFoundError
from penstock.settings import Settings
from penstock.training.declarations import (
    GatePolicy,
    LeakAlarm,
    LogisticRegression,
    LogLoss,
    MeanAbsoluteError,
    Model,
    Ridge,
    RocAuc,
    ServingPolicy,
    TimeSplit,
    TopGroupsPrecision,
    TorchModule,
    XGBoost,
    load_model,
)

SPLIT = {
    "train_start": datetime(2024, 1, 1),
    "train_end": datetime(2024, 1, 8),
    "label_delay": timedelta(days=2),
    "test_start": datetime(2024, 1, 10),
    "test_end": datetime(2024, 1, 17),
}
MODEL = {
    "name": "spills",
    "label_table": "reservoir.readings",
    "label": "SPILLED",
    "feature_service": "reservoir_v1",
    "split": TimeSplit(**SPLIT),
    "estimators": {"linear": LogisticRegression(), "boosted": XGBoost()},
    "default_estimator": "boosted",
    "metrics": (RocAuc(), TopGroupsPrecision(name="stations_at_5", group="STATION", k=5)),
    "primary_metric": "roc_auc",
    "gate": GatePolicy(metric="roc_auc"),
}


NUMBERS = MODEL | {
    "estimators": {"linear": Ridge(), "boosted": XGBoost(loss="absolute_error")},
    "metrics": (MeanAbsoluteError(),),
    "primary_metric": "mean_absolute_error",
    "gate": GatePolicy(metric="mean_absolute_error"),
}


class TestTimeSplit:
    def test_a_naive_moment_is_read_in_the_splits_zone(self):
        split = TimeSplit(**SPLIT, zone="Europe/Paris")
        assert split.train_start_utc == datetime(2023, 12, 31, 23, tzinfo=UTC)

    def test_a_moment_with_a_zone_keeps_it(self):
        split = TimeSplit(**SPLIT | {"train_start": datetime(2024, 1, 1, tzinfo=UTC)}, zone="UTC")
        assert split.train_start_utc == datetime(2024, 1, 1, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"train_end": datetime(2024, 1, 1)}, "train_start must come before"),
            ({"test_end": datetime(2024, 1, 10)}, "test_start must come before"),
            ({"test_start": datetime(2024, 1, 9)}, "would leak"),
            ({"label_delay": timedelta(days=-1)}, "must not be negative"),
            ({"zone": "Mars/Olympus"}, "no time zone"),
        ],
    )
    def test_a_split_that_contradicts_itself_is_refused_where_it_is_written(self, changed, words):
        with pytest.raises(ValidationError, match=words):
            TimeSplit(**SPLIT | changed)


class TestModel:
    def test_an_unknown_estimator_is_refused_and_the_nearest_name_offered(self):
        with pytest.raises(NotFoundError, match="did you mean 'boosted'"):
            Model(**MODEL).estimator("bosted")

    def test_the_default_estimator_is_taken_where_none_is_named(self):
        assert Model(**MODEL).estimator() == XGBoost()

    def test_the_columns_that_split_and_metrics_look_at_are_named_once(self):
        split = TimeSplit(**SPLIT, drop_known_positive_groups="STATION")
        assert Model(**MODEL | {"split": split}).group_columns == ("STATION",)

    @pytest.mark.parametrize(
        "changed",
        [
            {"primary_metric": "roc"},
            {"gate": GatePolicy(metric="accuracy")},
            {"leak_alarm": LeakAlarm(metric="average_precision", max_plausible=0.7)},
            {"metrics": (RocAuc(), RocAuc())},
            {"default_estimator": "forest"},
            {"label_table": "readings"},
        ],
    )
    def test_a_name_that_is_not_declared_is_refused(self, changed):
        with pytest.raises((DeclarationError, NotFoundError, ValidationError)):
            Model(**MODEL | changed)

    def test_a_leak_alarm_on_a_metric_where_lower_is_better_is_refused(self):
        alarm = LeakAlarm(metric="log_loss", max_plausible=0.7)
        with pytest.raises(ValidationError, match="lower is better"):
            Model(**MODEL | {"metrics": (RocAuc(), LogLoss()), "leak_alarm": alarm})

    def test_where_lower_is_better_the_leak_alarm_has_a_minimum(self):
        alarm = LeakAlarm(metric="mean_absolute_error", min_plausible=1.5)
        model = Model(**NUMBERS | {"leak_alarm": alarm})
        assert [model.leak_alarm.is_plausible(value) for value in (1.4, 1.5, 9)] == [0, 1, 1]
        with pytest.raises(ValidationError, match="higher is better"):
            Model(**MODEL | {"leak_alarm": LeakAlarm(metric="roc_auc", min_plausible=0.5)})

    @pytest.mark.parametrize("sides", [{}, {"max_plausible": 1.0, "min_plausible": 0.5}])
    def test_a_leak_alarm_has_one_side(self, sides):
        with pytest.raises(ValidationError, match="one of them"):
            LeakAlarm(metric="roc_auc", **sides)

    def test_its_task_is_that_of_its_estimators_and_metrics(self):
        assert (Model(**MODEL).task, Model(**NUMBERS).task) == ("binary", "regression")

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"estimators": {"linear": Ridge(), "boosted": XGBoost()}}, "of different kinds"),
            ({"metrics": (MeanAbsoluteError(), RocAuc())}, "the metric roc_auc is for binary"),
            (
                {"split": TimeSplit(**SPLIT, drop_known_positive_groups="STATION")},
                "has no positives",
            ),
        ],
    )
    def test_what_is_for_classes_has_no_place_beside_numbers(self, changed, words):
        with pytest.raises(ValidationError, match=words):
            Model(**NUMBERS | changed)

    def test_a_baseline_is_a_guess_at_a_number(self):
        assert Model(**NUMBERS | {"baseline": "last_level"}).baseline == "last_level"
        with pytest.raises(ValidationError, match="no feature is a guess at a class"):
            Model(**MODEL | {"baseline": "last_level"})

    def test_a_threshold_is_a_probability_or_for_a_number_any(self):
        beyond = {"serving": ServingPolicy(decision_threshold=30)}
        assert Model(**NUMBERS | beyond).serving.decision_threshold == 30
        with pytest.raises(ValidationError, match="no probability"):
            Model(**MODEL | beyond)

    def test_an_unknown_field_is_refused(self):
        with pytest.raises(ValidationError, match="did you mean 'learning_rate'"):
            XGBoost(learning_rat=0.1)
        with pytest.raises(ValidationError, match="Ridge has no field 'zzz': there are seed, "):
            Ridge(zzz=1)
        with pytest.raises(ValidationError, match="did you mean 'estimators'"):
            Model(**MODEL, estimator={})

    def test_a_users_torch_module_is_named_by_an_import_path(self):
        with pytest.raises(ValidationError):
            TorchModule(module="reservoir.nets")

    def test_a_models_rank_is_higher_the_better_it_is(self):
        model = Model(**MODEL)
        assert model.rank({"roc_auc": 0.9}) > model.rank({"roc_auc": 0.8})


def write_use_case(root, text):
    folder = root / "feature_repo" / "reservoir_declared"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "tables.py").write_text("")
    (folder / "model.py").write_text(text)
    return Settings(project_root=root)


class TestLoadModel:
    def test_a_file_without_a_model_is_refused(self, tmp_path, fresh_imports):
        settings = write_use_case(tmp_path, "x = 1\n")
        with pytest.raises(DeclarationError, match="declares 0 models"):
            load_model(settings, "reservoir_declared")

    def test_a_wrong_declaration_is_refused_with_its_file(self, tmp_path, fresh_imports):
        text = "from penstock.training.declarations import XGBoost\nXGBoost(max_dept=3)\n"
        settings = write_use_case(tmp_path, text)
        with pytest.raises(DeclarationError, match=r"XGBoost has no field 'max_dept'") as refused:
            load_model(settings, "reservoir_declared")
        assert "reservoir_declared/model.py" in refused.value.found
        assert "did you mean 'max_depth'" in refused.value.found

    def test_the_card_fraud_model_is_declared_whole(self, card_fraud_model):
        assert card_fraud_model.use_case == "card_fraud"
        published = {result.estimator for result in card_fraud_model.published}
        # LightGBM's were not published.
        assert published == set(card_fraud_model.estimators) - {"auto", "lightgbm", "xgboost_tuned"}
