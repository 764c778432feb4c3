"""Trainings of nets whose worker, node or driver is killed: they end with the very same weights."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
import ray
from ray.util.state import list_actors, list_placement_groups
from safetensors.torch import load_file

import mortal
import training_driver
from bundles import empty_tracking_database, new_project
from cases import some_slow
from forks import forks
from penstock.errors import PenstockError
from penstock.training.estimators import distributed, torch_nets
from penstock.training.estimators.base import FitJob

FIVE_SEEDS = range(5)
HISTORY = [{"train_loss": 1 / n} for n in range(1, 9)]
TESTS = Path(training_driver.__file__).parent


def moment(seed: int) -> int:
    """A step late enough for a checkpoint to have arrived before it."""
    return random.Random(seed).randint(9, mortal.NUM_STEPS - 2)


@pytest.fixture(autouse=True)
def unexported(monkeypatch):
    """Leaves the graph out, which takes seconds and is not what is lost here."""
    monkeypatch.setattr(torch_nets, "export", lambda *_, **__: b"")


@pytest.fixture
def diary(tmp_path: Path) -> Path:
    folder = tmp_path / "diary"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The same training where nothing was killed, in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_nets, "export", lambda *_, **__: b"")
        inputs, labels = mortal.rows()
        job = FitJob(name="fit", checkpoints=folder, import_folders=(str(TESTS),))
        return torch_nets.fit_here(mortal.declare(folder), inputs.numpy(), labels.numpy(), job)


def fit(config, folder: Path):
    inputs, labels = mortal.rows()
    job = FitJob(name="fit", checkpoints=folder, import_folders=(str(TESTS),))
    return torch_nets.fit(config, inputs.numpy(), labels.numpy(), job)


def assert_same(fitted, other) -> None:
    assert fitted.history == other.history
    assert_same_weights(fitted.native.net.state_dict(), other)


def assert_same_weights(weights, other) -> None:
    expected = other.native.net.state_dict()
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in weights)


@pytest.mark.ray
class TestKilledWorker:
    @pytest.mark.parametrize("seed", some_slow(FIVE_SEEDS, in_every_run={0}))
    def test_another_one_goes_on_from_the_last_checkpoint(
        self, connected, tmp_path, diary, undisturbed, seed
    ):
        (diary / mortal.ARMED).touch()
        config = mortal.declare(diary, dies_at=moment(seed), pause_s=0.1)
        assert_same(fit(config, tmp_path), undisturbed)
        steps = mortal.steps_in(diary)
        assert not (diary / mortal.ARMED).exists()
        assert len(set(steps)) == 2
        # Some steps since the checkpoint come again, and by far not all.
        assert mortal.NUM_STEPS <= len(steps) < mortal.NUM_STEPS + moment(seed)

    @pytest.mark.slow
    def test_one_of_two_takes_the_other_along_and_both_go_on(self, connected, tmp_path, diary):
        (diary / mortal.ARMED).touch()
        config = mortal.declare(diary, num_workers=2, dies_at=moment(7), pause_s=0.1)
        disturbed = fit(config, tmp_path / "disturbed")
        assert not (diary / mortal.ARMED).exists()
        assert_same(disturbed, fit(config, tmp_path / "undisturbed"))

    @pytest.mark.slow
    def test_without_checkpoints_all_of_it_is_done_again(self, connected, tmp_path, diary):
        (diary / mortal.ARMED).touch()
        dies_at = moment(0)
        fit(mortal.declare(diary, every=10_000, dies_at=dies_at), tmp_path)
        assert len(mortal.steps_in(diary)) == mortal.NUM_STEPS + dies_at


@pytest.mark.ray
class TestKilledController:
    """The process between the driver and its workers, which holds the place that they have."""

    def fit_until_it_is_killed(self, folder: Path, diary: Path, *, max_failures: int = 3):
        config = mortal.declare(diary, pause_s=0.1)
        with ThreadPoolExecutor(1) as beside:
            killed = beside.submit(self.kill_it, diary, moment(40))
            disturbed = fit(config.model_copy(update={"max_failures": max_failures}), folder)
        killed.result()
        return disturbed

    def kill_it(self, diary: Path, after: int) -> None:
        while len(mortal.steps_in(diary)) < after:
            time.sleep(0.05)
        own = ("job_id", "=", ray.get_runtime_context().get_job_id())
        controllers = list_actors(filters=[own, ("state", "=", "ALIVE")], detail=True)
        (pid,) = (actor.pid for actor in controllers if actor.class_name == "TrainController")
        os.kill(pid, signal.SIGKILL)

    def places_held(self) -> list[str]:
        own = ("creator_job_id", "=", ray.get_runtime_context().get_job_id())
        groups = list_placement_groups(filters=[own])
        return [group.placement_group_id for group in groups if group.state != "REMOVED"]

    def test_another_one_goes_on_from_the_last_checkpoint(
        self, connected, tmp_path, diary, undisturbed
    ):
        assert_same(self.fit_until_it_is_killed(tmp_path, diary), undisturbed)
        assert len(set(mortal.steps_in(diary))) == 2
        assert not self.places_held()

    @pytest.mark.slow
    def test_unless_none_is_allowed(self, connected, tmp_path, diary):
        with pytest.raises(PenstockError, match="its controller was lost 1 times"):
            self.fit_until_it_is_killed(tmp_path, diary, max_failures=0)

    @pytest.mark.slow
    def test_nobody_else_gives_back_the_place_of_its_workers(
        self, connected, tmp_path, diary, monkeypatch
    ):
        with monkeypatch.context() as patch:
            patch.setattr(distributed, "_give_back_what_workers_had", lambda: None)
            self.fit_until_it_is_killed(tmp_path, diary)
        assert len(self.places_held()) == 1
        distributed._give_back_what_workers_had()
        assert not self.places_held()


@pytest.mark.slow
class TestKilledNode:
    @pytest.mark.parametrize("seed", FIVE_SEEDS)
    def test_another_one_goes_on_from_the_last_checkpoint(self, tmp_path, diary, undisturbed, seed):
        step = moment(20 + seed)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        subprocess.run(
            [sys.executable, TESTS / "lossy_cluster.py", tmp_path, diary, str(step)],
            # A Ray whose start a busy machine delays is waited for.
            env=environment | {"PYTHONPATH": str(TESTS), "RAY_raylet_start_wait_time_s": "120"},
            check=True,
        )
        assert (diary / "lost").exists()
        assert_same_weights(load_file(tmp_path / "weights.safetensors"), undisturbed)
        assert json.loads((tmp_path / "history.json").read_text()) == undisturbed.history
        assert mortal.NUM_STEPS < len(mortal.steps_in(diary)) < mortal.NUM_STEPS + step


def log_until_killed(settings) -> None:
    training_driver.die_in_the_log()
    with training_driver.tracked(settings) as run:
        run.log_history(HISTORY)


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory) -> Path:
    return empty_tracking_database(tmp_path_factory.mktemp("empty"))


@pytest.mark.slow
class TestKilledWhileLogging:
    """Half of the epochs are in the database; the next attempt writes the other half."""

    @pytest.fixture
    def half_logged(self, tmp_path: Path, empty_database):
        settings = new_project(tmp_path, empty_database)
        process = forks.Process(target=log_until_killed, args=(settings,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        return settings

    def test_no_epoch_is_logged_twice(self, half_logged):
        with training_driver.tracked(half_logged) as run:
            run.log_history(HISTORY)
        assert self.logged_steps(half_logged) == [*range(1, len(HISTORY) + 1)]

    def test_without_a_look_at_what_is_there_some_are(self, half_logged, monkeypatch):
        with monkeypatch.context() as patch, training_driver.tracked(half_logged) as run:
            patch.setattr(mlflow.MlflowClient, "get_metric_history", lambda *_: [])
            run.log_history(HISTORY)
        assert len(self.logged_steps(half_logged)) > len(HISTORY)

    def logged_steps(self, settings) -> list[int]:
        client = mlflow.MlflowClient(tracking_uri=settings.tracking_uri)
        experiment = client.get_experiment_by_name(training_driver.EXPERIMENT)
        (run,) = client.search_runs([experiment.experiment_id])
        points = client.get_metric_history(run.info.run_id, "train_loss")
        return sorted(point.step for point in points)


class Driver:
    """A driver in a process of its own, on the test run's Ray."""

    def __init__(self, project, storage: Path, diary: Path) -> None:
        self._environment = project.environment | {"PYTHONPATH": str(TESTS)}
        self._arguments = [str(storage), str(diary)]
        self._diary = diary

    def run(self, dies_at: str | int) -> int:
        """Run it to its end, or until the net has taken so many steps; give its exit code."""
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "training_driver.py"), *self._arguments, str(dies_at)],
            env=self._environment,
        )
        while process.poll() is None:
            if isinstance(dies_at, int) and len(mortal.steps_in(self._diary)) >= dies_at:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.05)
        return process.wait()


@pytest.mark.ray
@pytest.mark.slow
class TestKilledDriver:
    @pytest.mark.parametrize(
        "dies_at", [*(moment(10 + seed) for seed in range(4)), training_driver.IN_THE_LOG]
    )
    def test_the_same_command_again_goes_on_with_the_same_run(
        self, project, ray_cluster, tmp_path, diary, undisturbed, dies_at
    ):
        driver = Driver(project, tmp_path, diary)
        assert driver.run(dies_at) == -signal.SIGKILL
        before = len(mortal.steps_in(diary))
        assert driver.run("never") == 0
        assert_same_weights(load_file(tmp_path / training_driver.WEIGHTS_FILE), undisturbed)
        assert len(mortal.steps_in(diary)) - before < mortal.NUM_STEPS
        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
        experiment = client.get_experiment_by_name(training_driver.EXPERIMENT)
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"
        for name in ("train_loss", "learning_rate"):
            points = client.get_metric_history(run.info.run_id, name)
            assert [p.step for p in points] == list(range(1, mortal.NUM_EPOCHS + 1))
            logged = [epoch[name] for epoch in undisturbed.history]
            assert [p.value for p in points] == logged
