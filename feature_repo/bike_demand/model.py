"""The bike-demand model: how many bikes stand at a station now, told half an hour before it is."""

from datetime import datetime

from bike_demand.feature_tables import LABEL_DELAY
from penstock.training.declarations import (
    R2,
    Bootstrap,
    GatePolicy,
    LeakAlarm,
    MeanAbsoluteError,
    MetricBound,
    Model,
    PrequentialFolds,
    PublishedResult,
    RandomForest,
    Ridge,
    RollingTimeSplit,
    RootMeanSquaredError,
    TimeSplit,
    TorchMLP,
    XGBoost,
)

# What "the station's last known reading" reaches: whoever is worse has learnt nothing.
LAST_KNOWN_READING = 2.21

model = Model(
    name="bike_demand",
    label_table="bike_demand.readings",
    label="bikes",
    feature_service="bike_demand_v1",
    split=RollingTimeSplit(
        train_start=datetime(2016, 4, 1),
        test_start=datetime(2016, 5, 1),
        test_end=datetime(2016, 10, 6),
        refit_every="month",
        label_delay=LABEL_DELAY,
    ),
    # Eight weeks train and the next four test, four times over.
    validation=PrequentialFolds(
        first=TimeSplit(
            train_start=datetime(2016, 4, 1),
            train_end=datetime(2016, 5, 27) - LABEL_DELAY,
            test_start=datetime(2016, 5, 27),
            test_end=datetime(2016, 6, 24),
            label_delay=LABEL_DELAY,
        ),
        num_folds=4,
    ),
    # Readings of one day err together.
    bootstrap=Bootstrap(unit="day"),
    estimators={
        "ridge": Ridge(),
        "random_forest": RandomForest(
            criterion="squared_error", num_trees=30, max_depth=10, min_samples_leaf=20, num_cpus=2
        ),
        "xgboost": XGBoost(
            loss="absolute_error",
            num_rounds=60,
            learning_rate=0.1,
            max_bins=64,
            subsample=0.5,
            min_child_weight=20,
        ),
        "mlp": TorchMLP(loss="absolute_error", num_epochs=6, batch_size=512, learning_rate=2e-3),
    },
    default_estimator="xgboost",
    metrics=(MeanAbsoluteError(), RootMeanSquaredError(), R2()),
    primary_metric="mean_absolute_error",
    baseline="bikes_last_day",
    leak_alarm=LeakAlarm(metric="mean_absolute_error", min_plausible=1.7),
    gate=GatePolicy(
        metric="mean_absolute_error",
        min_gain=-0.02,
        bounds=(MetricBound(metric="mean_absolute_error", at_most=LAST_KNOWN_READING),),
    ),
    published=(PublishedResult(estimator="ridge", metrics={"mean_absolute_error": 4.02}),),
    published_source="the library river's linear regression on the weather and the running mean by "
    "station and hour, each label revealed 30 minutes late (progressive, over the whole stream)",
)
