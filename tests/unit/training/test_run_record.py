import json

import numpy as np
import pytest

from penstock.settings import Settings
from penstock.training.declarations import Model, load_model
from penstock.training.run_record import calibration, declaration
from projects import REPO_ROOT


def test_scores_of_classes_are_binned_by_width_and_of_numbers_by_rows(card_fraud_model):
    scores = np.linspace(0, 1, 100)
    labels = (scores > 0.5).astype(np.int8)
    found = calibration(card_fraud_model, labels, scores)
    assert sum(found["num_rows"]) == 100
    assert (found["mean_labels"][0], found["mean_labels"][-1]) == (0, 1)
    bikes = load_model(Settings(project_root=REPO_ROOT), "bike_demand")
    numbers = calibration(bikes, scores * 30, scores * 20)
    assert numbers["num_rows"] == [10] * 10
    assert numbers["mean_labels"] == pytest.approx([x * 1.5 for x in numbers["mean_scores"]])


@pytest.mark.parametrize("use_case", ["card_fraud", "bike_demand"])
def test_the_declaration_of_a_run_is_of_its_own_estimator_and_can_be_read_again(use_case):
    model = load_model(Settings(project_root=REPO_ROOT), use_case)
    for name, config in model.estimators.items():
        again = Model.model_validate(json.loads(json.dumps(declaration(model, name))))
        assert dict(again.estimators) == {name: config}
        assert again.default_estimator == name
        for field in ("split", "preprocessing", "metrics", "slices", "bootstrap", "leak_alarm"):
            assert getattr(again, field) == getattr(model, field)
