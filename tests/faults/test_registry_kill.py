"""Registrations and promotions that are killed, each in a real process, before each of their steps."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundles import add_version, empty_tracking_database, new_project
from cases import some_slow
from forks import forks
from penstock.errors import BusyError
from penstock.settings import Settings
from small_model import SmallRun, prepare, train_small

# What a kill can come between: what MLflow writes, and what is renamed into its place.
WRITES = (
    "create_registered_model",
    "create_model_version",
    "set_model_version_tag",
    "set_registered_model_tag",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)
# The model and its entry; the two halves of the key; the sealed folder; facts and state; the audit
# log's head; the alias.
NUM_REGISTER_STEPS = 2 + 2 + 1 + 2 + 1 + 1
BEFORE_THE_FOLDERS_RENAME = 5
# The intent, the audit log's head, three aliases, and that they are set.
NUM_PROMOTE_STEPS = 1 + 1 + 3 + 1


@contextmanager
def dying_at(step: int) -> Iterator[None]:
    """Die by SIGKILL before the given step."""
    from mlflow import MlflowClient

    num_steps = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal num_steps
            num_steps += 1
            if num_steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in WRITES:
            patch.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))
        patch.setattr(Path, "rename", counted(Path.rename))
        yield


def register_until(settings: Settings, run: SmallRun, step: int) -> None:
    from penstock.registry.registration import register

    with dying_at(step):
        register(settings, run)


def promote_until(settings: Settings, _run: None, step: int) -> None:
    from penstock.registry.promotion import promote

    with dying_at(step):
        promote(settings, "spills", 2, expected=1)


def exit_code(target: Callable[..., None], settings: Settings, run: SmallRun | None, step: int):
    process = forks.Process(target=target, args=(settings, run, step))
    process.start()
    process.join()
    return process.exitcode


def told(settings: Settings) -> list[tuple[str, str]]:
    """What the audit log says, once it is known to be whole."""
    from penstock import audit

    audit.verify(settings)
    return [(record.action, record.subject) for record in audit.records(settings)]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_tracking_database(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> tuple[Settings, SmallRun]:
    settings = prepare(tmp_path_factory.mktemp("trained"), num_payments=600)
    shutil.copy(empty_database, settings.storage_path / "mlflow.db")
    return settings, train_small(settings, "run-1")


@pytest.fixture
def run(trained: tuple[Settings, SmallRun], tmp_path: Path) -> tuple[Settings, SmallRun]:
    """The same run in a storage that the test may spoil, with an empty registry."""
    storage = tmp_path / "storage"
    shutil.copytree(trained[0].storage_path, storage)
    root = trained[0].storage.model_copy(update={"root": str(storage)})
    settings = trained[0].model_copy(update={"storage": root})
    return settings, replace(trained[1], bundle_path=str(storage / "runs/run-1/bundle"))


class TestKilledRegistration:
    @pytest.mark.parametrize(
        "step", some_slow(range(1, NUM_REGISTER_STEPS + 1), in_every_run={2, 5, 7})
    )
    def test_the_next_one_finishes_it_under_the_same_number(self, run, step):
        from penstock.registry.package import verify
        from penstock.registry.registration import register
        from penstock.registry.versions import ModelRegistry

        settings, trained = run
        assert exit_code(register_until, settings, trained, step) == -signal.SIGKILL
        registry = ModelRegistry(settings)
        seen = [v for name in registry.names() for v in registry.versions(name)]
        for version in seen:
            verify(Path(version.path), settings, digest=version.digest)
        version = register(settings, trained)
        assert (version.version, version.aliases) == (1, ("challenger",))
        verify(Path(version.path), settings, digest=version.digest)
        assert [p.name for p in Path(version.path).parent.iterdir()] == ["1"]
        assert told(settings) == [("model.register", "card_fraud 1")]

    def test_without_the_clearing_away_a_half_written_folder_stays(self, run, monkeypatch):
        from penstock.registry import registration

        settings, trained = run
        exit_code(register_until, settings, trained, BEFORE_THE_FOLDERS_RENAME)
        monkeypatch.setattr(registration, "remove_unfinished", lambda _: 0)
        version = registration.register(settings, trained)
        assert len(list(Path(version.path).parent.iterdir())) == 2

    def test_a_living_one_has_no_more_steps(self, run):
        # Holds NUM_REGISTER_STEPS true: were there fewer, the last kills would hit nothing.
        assert exit_code(register_until, *run, NUM_REGISTER_STEPS + 1) == 0


@pytest.fixture
def challenged(tmp_path: Path, empty_database: Path) -> Settings:
    """Version 1 is champion, 2 its challenger, and 3 waits."""
    from penstock.registry.promotion import promote
    from penstock.registry.versions import ModelRegistry

    settings = new_project(tmp_path, empty_database)
    for number, score in enumerate((0.5, 0.55, 0.6), start=1):
        add_version(settings, f"run-{number}", average_precision=score)
    promote(settings, "spills", 1, expected=None)
    ModelRegistry(settings).set_aliases("spills", {"challenger": 2})
    return settings


class TestKilledPromotion:
    @pytest.mark.parametrize(
        "step", some_slow(range(1, NUM_PROMOTE_STEPS + 1), in_every_run={1, 3})
    )
    def test_the_champion_is_the_old_one_or_the_new_one_and_the_next_move_goes_on(
        self, challenged, step
    ):
        from penstock.registry.promotion import promote
        from penstock.registry.versions import ModelRegistry

        assert exit_code(promote_until, challenged, None, step) == -signal.SIGKILL
        registry = ModelRegistry(challenged)
        assert registry.aliases("spills")["champion"] in (1, 2)
        # An intent that was written is carried out by the next holder of the lock.
        champion = 1 if step == 1 else 2
        promote(challenged, "spills", 3, expected=champion)
        aliases = registry.aliases("spills")
        assert (aliases["champion"], aliases["previous_champion"]) == (3, champion)
        line = [1, 3] if step == 1 else [1, 2, 3]
        moves = registry.moves("spills")
        assert [(m.number, m.to_version) for m in moves] == list(enumerate(line, start=1))
        assert told(challenged) == [("model.promote", f"spills {number}") for number in line]

    def test_without_the_journal_a_promise_that_was_written_is_forgotten(
        self, challenged, monkeypatch
    ):
        from penstock.registry.promotion import promote
        from penstock.registry.versions import ModelRegistry

        exit_code(promote_until, challenged, None, 2)
        monkeypatch.setattr(ModelRegistry, "finish_moves", lambda *_: None)
        with pytest.raises(BusyError, match="is version 1, no longer version 2"):
            promote(challenged, "spills", 3, expected=2)

    def test_a_living_one_has_no_more_steps(self, challenged):
        assert exit_code(promote_until, challenged, None, NUM_PROMOTE_STEPS + 1) == 0
