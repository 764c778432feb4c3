"""The published protocol on the published features gives the published numbers."""

import pytest

from penstock.scorer import load_scorer
from penstock.training import bundle, preprocessing
from penstock.training.estimators import scikit
from penstock.training.metrics import evaluate
from penstock.training.results import falls_short
from penstock.training.validation import split, to_examples

KEYS = {"TRANSACTION_ID", "TX_DATETIME", "CUSTOMER_ID", "TERMINAL_ID", "TX_FRAUD"}
NOT_FEATURES = KEYS | {"TX_TIME_SECONDS", "TX_TIME_DAYS", "TX_FRAUD_SCENARIO"}


@pytest.fixture(scope="module")
def sides(published_examples, card_fraud_model):
    names = tuple(n for n in published_examples.columns if n not in NOT_FEATURES)
    assert len(names) == 15
    cut = split(
        published_examples, card_fraud_model.split, event_time="TX_DATETIME", label="TX_FRAUD"
    )
    return names, *(
        to_examples(frame, feature_names=names, label="TX_FRAUD", side=side)
        for frame, side in zip(cut, ("training", "test"), strict=True)
    )


@pytest.mark.parametrize("name", ["logistic_regression", "decision_tree"])
def test_an_estimator_of_one_task_reaches_them(sides, card_fraud_model, name):
    names, train, test = sides
    scaling = preprocessing.fit(train.features, feature_names=names)
    fitted = scikit.fit_here(
        card_fraud_model.estimator(name), scaling.apply(train.features), train.labels
    )
    scores = load_scorer(bundle.assemble(scaling, fitted))(test.features)
    ours = evaluate(card_fraud_model.metrics, test, scores)
    published = next(r for r in card_fraud_model.published if r.estimator == name)
    assert falls_short(ours, published.metrics, {}, tolerance=0.01) == ()
