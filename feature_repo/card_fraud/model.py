"""The card-fraud model: what it predicts, how it is split, trained, measured, gated and served."""

from datetime import datetime, timedelta

from penstock.training.declarations import (
    AveragePrecision,
    BrierScore,
    CalibrationError,
    DecisionTree,
    Ensemble,
    Floats,
    GatePolicy,
    IntendedUse,
    Ints,
    LeakAlarm,
    LightGBM,
    LogisticRegression,
    LogLoss,
    Member,
    Model,
    PreprocessingPolicy,
    PrequentialFolds,
    PublishedResult,
    RandomForest,
    RocAuc,
    Search,
    ServingPolicy,
    Slice,
    TimeSplit,
    TopGroupsPrecision,
    TorchMLP,
    XGBoost,
)


def _published(estimator: str, *numbers: float) -> PublishedResult:
    names = ("roc_auc", "average_precision", "card_precision_at_100")
    return PublishedResult(estimator=estimator, metrics=dict(zip(names, numbers, strict=True)))


WEEK = TimeSplit(
    train_start=datetime(2018, 7, 25),
    train_end=datetime(2018, 8, 1),
    label_delay=timedelta(days=7),
    test_start=datetime(2018, 8, 8),
    test_end=datetime(2018, 8, 15),
    drop_known_positive_groups="CUSTOMER_ID",
)

model = Model(
    name="card_fraud",
    label_table="card_fraud.transactions",
    label="TX_FRAUD",
    feature_service="card_fraud_v1",
    split=WEEK,
    # The fourth published fold tests a week of September, which the data does not reach.
    validation=PrequentialFolds(first=WEEK, num_folds=3),
    estimators={
        "logistic_regression": LogisticRegression(),
        "decision_tree": DecisionTree(max_depth=2),
        "random_forest": RandomForest(num_cpus=2),
        # The published numbers come from an XGBoost that started from 0.5 and tried every
        # threshold; both defaults have changed since.
        "xgboost": XGBoost(initial_score=0.5, max_bins=4096),
        # Found by `penstock tune card_fraud --trials 24` on four weeks before the test.
        "xgboost_tuned": XGBoost(
            initial_score=0.5,
            max_bins=4096,
            num_rounds=197,
            max_depth=2,
            learning_rate=0.183,
            min_child_weight=0.226,
            subsample=0.594,
            column_sample_by_tree=0.952,
        ),
        # Slower and with heavier leaves than its defaults, which one fraud in a hundred rows leads
        # astray; chosen on the two weeks before the test.
        "lightgbm": LightGBM(learning_rate=0.05, min_child_weight=1.0),
        "mlp": TorchMLP(hidden_sizes=(64, 64), num_epochs=15, batch_size=256, learning_rate=2e-3),
        # Found by `penstock tune card_fraud --auto --time 25m` on four weeks before the test.
        "auto": Ensemble(
            members=(
                Member(
                    estimator=TorchMLP(
                        hidden_sizes=(128, 64), learning_rate=0.00666, dropout=0.117
                    ),
                    preprocessing=PreprocessingPolicy(scaling="robust"),
                ),
                Member(estimator=RandomForest(num_cpus=2, max_depth=30, num_trees=199)),
                Member(estimator=XGBoost(max_bins=4096, initial_score=0.5)),
                Member(
                    estimator=TorchMLP(
                        hidden_sizes=(128, 64), num_epochs=19, learning_rate=0.00637, dropout=0.118
                    ),
                    preprocessing=PreprocessingPolicy(scaling="robust"),
                ),
            )
        ),
    },
    default_estimator="xgboost",
    search={
        "xgboost": Search(
            num_rounds=Ints(20, 300, log=True),
            max_depth=Ints(2, 9),
            learning_rate=Floats(0.02, 0.5, log=True),
            min_child_weight=Floats(0.1, 30.0, log=True),
            subsample=Floats(0.5, 1.0),
            column_sample_by_tree=Floats(0.4, 1.0),
        ),
        "logistic_regression": Search(inverse_regularization=Floats(1e-4, 100.0, log=True)),
        # What may change while a net trains: for `penstock tune --population` too.
        "mlp": Search(
            learning_rate=Floats(3e-4, 1e-2, log=True),
            weight_decay=Floats(1e-6, 1e-2, log=True),
        ),
    },
    metrics=(
        RocAuc(),
        AveragePrecision(),
        TopGroupsPrecision(name="card_precision_at_100", group="CUSTOMER_ID", k=100),
        LogLoss(),
        BrierScore(),
        CalibrationError(),
    ),
    primary_metric="average_precision",
    # With terminal risk not delayed a forest reaches 0.993: what is honest stays far below.
    leak_alarm=LeakAlarm(metric="average_precision", max_plausible=0.75),
    gate=GatePolicy(metric="average_precision", min_gain=-0.005),
    serving=ServingPolicy(decision_threshold=0.5, explanations=True),
    intended_use=IntendedUse(
        purpose="to choose the payments, and the cards, that a person looks at",
        users="investigators, who look at about a hundred cards a day",
        not_for=("to block a payment with nobody asked", "to judge a customer beyond their card"),
    ),
    limits=("The payments are simulated: no claim about a bank's own can be made from them.",),
    slices=(
        Slice(feature="TX_AMOUNT", edges=(25.0, 100.0, 220.0)),
        Slice(feature="TX_DURING_NIGHT"),
        Slice(feature="TX_DURING_WEEKEND"),
    ),
    published=(
        _published("logistic_regression", 0.871, 0.606, 0.291),
        _published("decision_tree", 0.763, 0.496, 0.241),
        _published("random_forest", 0.867, 0.658, 0.287),
        _published("xgboost", 0.862, 0.639, 0.273),
        _published("mlp", 0.864, 0.653, 0.286),
    ),
    published_source="the Fraud Detection Handbook (Machine Learning Group, ULB)",
    published_on_folds=(
        _published("logistic_regression", 0.868, 0.623, 0.297),
        _published("random_forest", 0.870, 0.678, 0.299),
        _published("xgboost_tuned", 0.869, 0.687, 0.303),
        _published("mlp", 0.876, 0.675, 0.303),
    ),
    published_on_folds_source="the same handbook, means over these folds and a fourth one, with "
    "parameters that were tuned on earlier folds; ours are those of model.py",
)
