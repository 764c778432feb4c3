from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from penstock.cli.main import app
from penstock.errors import GateRefusedError
from real_data import REPO_ROOT

VERDICT = {
    "verdict": "reproduced",
    "run_id": "a" * 32,
    "again_run_id": "b" * 32,
    "estimator": "forest",
    "tolerance": 1e-9,
    "metrics": {"roc_auc": [0.87, 0.87]},
    "differences": [],
    "circumstances": [{"what": "num_cores", "recorded": "8", "again": "2"}],
}


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(REPO_ROOT))
    monkeypatch.setenv("PENSTOCK_STORAGE__ROOT", str(tmp_path))

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["reproduce", *arguments])

    return run


def test_a_run_that_is_not_there_starts_no_job(invoke, monkeypatch):
    monkeypatch.setattr("penstock.cluster.jobs.run_job", None)
    assert invoke("0" * 32).exception.exit_code == 2


class TestVerdict:
    @pytest.fixture(autouse=True)
    def finished(self, monkeypatch):
        found = SimpleNamespace(use_case="dam")
        monkeypatch.setattr("penstock.training.runs.find_run", lambda *_: found)

    def test_it_is_shown_with_what_the_run_was_on_otherwise(self, invoke, monkeypatch):
        given: list[str] = []

        def run_job(_settings: Any, _script: str, arguments: list[str], **_: Any) -> Any:
            given.extend(arguments)
            return VERDICT

        monkeypatch.setattr("penstock.cluster.jobs.run_job", run_job)
        done = invoke("a" * 32, "--anyway")
        assert (done.exit_code, given) == (0, ["a" * 32, "--use-case", "dam", "--anyway"])
        assert "(forest): reproduced" in done.stdout
        assert "num_cores: 8 then, 2 now" in done.stdout

    def test_a_difference_is_shown_and_ends_with_the_gates_exit_code(self, invoke, monkeypatch):
        error = GateRefusedError("the run did not come out again")
        error.result = VERDICT | {
            "verdict": "differs",
            "differences": [{"what": "roc_auc", "recorded": "0.87", "again": "0.8"}],
        }

        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("penstock.cluster.jobs.run_job", fail)
        done = invoke("a" * 32)
        assert done.exception.exit_code == 3
        assert "roc_auc: recorded 0.87, again 0.8" in done.stdout
