import numpy as np
import pytest

from penstock.errors import NotFoundError
from penstock.settings import Settings
from penstock.training.declarations import Model, load_model
from penstock.training.runs import find_run, num_threads, predictions_digest
from projects import REPO_ROOT


@pytest.mark.parametrize("use_case", ["card_fraud", "bike_demand"])
def test_a_declared_model_comes_back_from_its_record(use_case):
    model = load_model(Settings(project_root=REPO_ROOT), use_case)
    assert Model.model_validate_json(model.model_dump_json()) == model


@pytest.mark.parametrize("run_id", ["../../x", "0" * 32, ""])
def test_a_run_that_is_not_there_is_named(tmp_path, run_id):
    with pytest.raises(NotFoundError, match="no finished run"):
        find_run(Settings(project_root=tmp_path), run_id)


class TestPredictionsDigest:
    def test_it_is_of_the_numbers_however_they_lie_in_memory(self):
        scores = np.array([0.1, 0.2, 0.3, 0.4])
        assert predictions_digest(scores) == predictions_digest(np.repeat(scores, 2)[::2])

    def test_the_last_bit_of_one_number_changes_it(self):
        scores = np.array([0.1, 0.2])
        other = np.array([0.1, np.nextafter(0.2, 1)])
        assert predictions_digest(scores) != predictions_digest(other)


def test_threads_are_those_of_all_workers(card_fraud_model):
    forest = card_fraud_model.estimators["random_forest"]
    boosted = card_fraud_model.estimators["xgboost"]
    assert num_threads(forest) == forest.num_cpus
    both = boosted.model_copy(update={"num_workers": 3, "num_cpus_per_worker": 2})
    assert num_threads(both) == 6
