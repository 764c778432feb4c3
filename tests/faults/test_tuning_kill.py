"""Searches whose driver is killed in the middle, in a real process: no fold is fitted twice."""

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import empty_tracking_database
from cases import some_slow
from forks import forks
from payments import commit_payments, payments_before_the_test, settings_in
from penstock.settings import Settings

NUM_TRIALS = 4
NUM_FOLDS = 2


def search_arrays(folder: Path, die_at: int | None) -> None:
    """Search over two folds of made-up arrays; note each fit, and die before one of them."""
    import numpy as np
    import polars as pl

    from penstock.training.declarations import AveragePrecision, LogisticRegression, Search
    from penstock.training.estimators.base import FitJob
    from penstock.training.preprocessing import Preprocessing
    from penstock.training.search.budget import Budget
    from penstock.training.search.controller import Controller, Plan
    from penstock.training.search.ledger import Ledger
    from penstock.training.search.measuring import PreparedFold, measure
    from penstock.training.search.proposals import Space
    from penstock.training.search.tasks import Here
    from penstock.training.search_declarations import Floats, with_values
    from penstock.training.validation import Examples

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(400, 4)).astype(np.float32)
    labels = (rows[:, 0] + rng.normal(size=400) > 1).astype(np.int8)
    fold = PreparedFold(
        train=rows[:200],
        train_labels=labels[:200],
        scaling=Preprocessing(means=np.zeros(4), scales=np.ones(4)),
        job=FitJob(name="trial", checkpoints=folder),
        test=rows[200:],
        test_rows=Examples(features=np.empty((200, 0)), labels=labels[200:], frame=pl.DataFrame()),
    )
    space = Space(
        searches={"linear": Search(inverse_regularization=Floats(1e-4, 10.0, log=True))},
        declared={"linear": {"inverse_regularization": 1.0}},
        seed=0,
        metric="average_precision",
        higher_is_better=True,
    )
    plan = Plan(
        space=space,
        folds=(1, 0),
        budget=Budget(num_trials=NUM_TRIALS),
        rule="none",
        money_per_cpu_s=0.0,
        num_cpus={"linear": 1},
    )
    tasks = Here()

    def fit(trial, number, config):
        note(folder / "fits.txt", f"{trial} {number}", die_at)
        return measure(fold, config, [AveragePrecision()])

    def start(trial, number):
        config = with_values(LogisticRegression(), trial.params, of="a trial")
        tasks.start((trial.number, number), fit, trial.number, number, config, num_cpus=1)

    Controller(plan, Ledger(folder / "ledger.jsonl", {}), tasks, start).run()


def note(fits: Path, line: str, die_at: int | None) -> None:
    if die_at is not None and len(read(fits)) == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    with fits.open("a") as out:
        out.write(f"{line}\n")


def search(storage: Path, fits: Path, die_at: int | None) -> None:
    """Search; note each fit before it begins, and die by SIGKILL before the one of that number."""
    from penstock.training.declarations import Floats, LogisticRegression, Search, load_model
    from penstock.training.search import tuning
    from penstock.training.search.asked import Asked
    from penstock.training.search.budget import Budget

    measure = tuning.measure

    def noted(fold, config, metrics, policy):
        note(fits, f"{config.inverse_regularization!r} {fold.test_rows.num_rows}", die_at)
        return measure(fold, config, metrics, policy)

    tuning.measure = noted
    settings = settings_in(storage)
    asked = Asked(
        searches={
            "logistic_regression": Search(inverse_regularization=Floats(1e-4, 10.0, log=True))
        },
        estimators={"logistic_regression": LogisticRegression()},
        budget=Budget(num_trials=NUM_TRIALS),
        num_folds=NUM_FOLDS,
    )
    tuning.tune(settings, load_model(settings, "card_fraud"), asked, request_id="killed")


def read(fits: Path) -> list[str]:
    return fits.read_text().splitlines() if fits.exists() else []


def attempt(what: Callable[..., None], *arguments: Any) -> int | None:
    process = forks.Process(target=what, args=arguments)
    process.start()
    process.join(timeout=240)
    return process.exitcode


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Settings:
    from penstock.features.build import build
    from penstock.features.store import apply

    settings = settings_in(tmp_path_factory.mktemp("prepared"))
    commit_payments(settings, payments_before_the_test())
    build(settings, "card_fraud")
    apply(settings)
    database = empty_tracking_database(tmp_path_factory.mktemp("tracking"))
    shutil.copy(database, settings.storage_path / "mlflow.db")
    return settings


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory):
    storage = copy(prepared, tmp_path_factory.mktemp("whole"))
    fits = storage / "fits.txt"
    assert attempt(search, storage, fits, None) == 0
    return found(storage), read(fits)


def copy(settings: Settings, folder: Path) -> Path:
    """A storage of its own: what lies in it names no place but its own folders."""
    storage = folder / "storage"
    shutil.copytree(settings.storage_path, storage)
    return storage


def found(storage: Path):
    from penstock.training.search.tuning import read_tuning
    from penstock.training.tracking import Tracking

    settings = settings_in(storage)
    run_id = Tracking.open(settings).find_run("card_fraud-tuning", "killed")
    tuning = read_tuning(settings, run_id)
    return [(t.params, t.state, t.num_folds, t.value) for t in tuning.trials]


def runs_by_status(storage: Path) -> Counter[str]:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=settings_in(storage).tracking_uri)
    experiment = client.get_experiment_by_name("card_fraud-tuning")
    return Counter(run.info.status for run in client.search_runs([experiment.experiment_id]))


class TestController:
    """The part that decides what is fitted, with real fits on arrays."""

    @pytest.mark.parametrize("die_at", some_slow([0, 1, 3, 4, 7], in_every_run=[3]))
    def test_killed_and_begun_again_it_fits_each_fold_once(self, tmp_path, die_at):
        assert attempt(search_arrays, tmp_path, die_at) == -signal.SIGKILL
        assert attempt(search_arrays, tmp_path, None) == 0
        fits = read(tmp_path / "fits.txt")
        assert sorted(fits) == [f"{t} {f}" for t in range(NUM_TRIALS) for f in range(NUM_FOLDS)]

    def test_without_its_ledger_it_would_fit_some_twice(self, tmp_path):
        assert attempt(search_arrays, tmp_path, 3) == -signal.SIGKILL
        (tmp_path / "ledger.jsonl").unlink()
        assert attempt(search_arrays, tmp_path, None) == 0
        assert len(read(tmp_path / "fits.txt")) == NUM_TRIALS * NUM_FOLDS + 3


@pytest.mark.slow
class TestWhole:
    """The same with tables, folds of time and MLflow around it."""

    @pytest.mark.parametrize("die_at", [0, 1, 2, 3, 5])
    def test_the_same_command_again_ends_as_if_nothing_had_happened(
        self, prepared, undisturbed, tmp_path, die_at
    ):
        storage = copy(prepared, tmp_path)
        fits = storage / "fits.txt"
        assert attempt(search, storage, fits, die_at) == -signal.SIGKILL
        assert len(read(fits)) == die_at
        assert attempt(search, storage, fits, None) == 0
        assert (found(storage), sorted(read(fits))) == (undisturbed[0], sorted(undisturbed[1]))
        # The search and its trials, each once, none left as if it were running.
        assert runs_by_status(storage) == Counter({"FINISHED": 1 + NUM_TRIALS})

    def test_without_the_ledger_the_same_kill_repeats_fits(self, prepared, undisturbed, tmp_path):
        storage = copy(prepared, tmp_path)
        fits = storage / "fits.txt"
        assert attempt(search, storage, fits, 3) == -signal.SIGKILL
        for ledger in storage.glob("tuning/*/ledger.jsonl"):
            ledger.unlink()
        assert attempt(search, storage, fits, None) == 0
        assert len(read(fits)) == len(undisturbed[1]) + 3
