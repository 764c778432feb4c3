"""Several estimators in one command: none takes anything from another, and the best comes last."""

from types import SimpleNamespace

import pytest

from penstock.errors import GateRefusedError, NotFoundError, TrainingDataError
from penstock.registry.candidates import compare, names_to_train
from penstock.settings import Settings
from penstock.training.declarations import load_model
from real_data import REPO_ROOT

SCORES = {"forest": 0.9, "net": None, "linear": 0.8, "trees": 0.7}
MODEL = SimpleNamespace(rank=lambda metrics: metrics["roc_auc"])


def train(name):
    if SCORES[name] is None:
        raise TrainingDataError("the loss was not a finite number")
    return SimpleNamespace(estimator=name, metrics={"roc_auc": SCORES[name]})


def numbered(refused=()):
    numbers = iter(range(1, 9))

    def register(run):
        if run.estimator in refused:
            raise OSError("disk full")
        return SimpleNamespace(version=next(numbers))

    return register


def test_what_could_be_trained_is_registered_though_others_failed():
    told = []
    register = numbered(refused={"trees"})
    found = compare(MODEL, list(SCORES), train=train, register=register, tell=told.append)
    # The last one registered is the challenger.
    assert [(run.estimator, made.version) for run, made in found.trained] == [
        ("linear", 1),
        ("forest", 2),
    ]
    assert [type(error) for error in found.failures] == [TrainingDataError, OSError]
    assert told == [
        "net failed: the loss was not a finite number.",
        "trees was not registered: disk full",
    ]


def test_the_gate_is_asked_for_the_best_and_its_no_takes_nothing_back():
    asked = []

    def refuse(version):
        asked.append(version)
        raise GateRefusedError("worse than the champion")

    found = compare(
        MODEL, ["forest", "linear"], train=train, register=numbered(), promote=refuse, tell=print
    )
    assert asked == [2]
    assert found.promoted is None
    assert [run.estimator for run, _ in found.trained] == ["linear", "forest"]
    assert found.failures[0].exit_code == 3


def test_where_nothing_was_trained_nothing_is_promoted():
    found = compare(MODEL, ["net"], train=train, register=numbered(), promote=pytest.fail)
    assert (found.trained, found.promoted, len(found.failures)) == ([], None, 1)


def test_each_estimator_is_named_once_and_an_unknown_one_before_any_is_trained():
    model = load_model(Settings(project_root=REPO_ROOT), "card_fraud")
    assert names_to_train(model, ["mlp", "xgboost", "mlp"], every=False) == ["mlp", "xgboost"]
    assert names_to_train(model, [], every=True) == list(model.estimators)
    assert names_to_train(model, [], every=False) == [model.default_estimator]
    with pytest.raises(NotFoundError, match="did you mean 'random_forest'"):
        names_to_train(model, ["mlp", "random_forst"], every=False)
