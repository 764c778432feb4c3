import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import BusyError, PenstockError
from penstock.registry.lock import model_lock
from penstock.settings import Settings


def hold(settings: Settings, pipe: Any) -> None:
    with model_lock(settings, "spills"):
        pipe.send("held")
        pipe.recv()


def on_postgres(folder: Path, url: str) -> Settings:
    return Settings.model_validate({"project_root": folder, "tracking": {"uri": url}})


def check_it_dies_with_its_holder(settings: Settings) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    holder = context.Process(target=hold, args=(settings, theirs))
    holder.start()
    try:
        assert ours.recv() == "held"
        with pytest.raises(BusyError, match="spills"), model_lock(settings, "spills"):
            pytest.fail("two hold the lock at once")
        with model_lock(settings, "other"):
            pass
    finally:
        holder.kill()
        holder.join()
    with model_lock(settings, "spills", wait_s=10):
        pass


def test_a_file_lock_excludes_others_and_dies_with_its_holder(tmp_path):
    check_it_dies_with_its_holder(Settings(project_root=tmp_path))


@pytest.mark.servers
def test_a_lock_in_postgres_excludes_others_and_dies_with_its_holder(tmp_path, postgres):
    check_it_dies_with_its_holder(on_postgres(tmp_path, postgres.create("model_locks")))


def test_a_database_that_does_not_answer_is_told_without_its_password(tmp_path):
    settings = on_postgres(tmp_path, "postgresql+psycopg://me:hunter2@127.0.0.1:9/db")
    with (
        pytest.raises(PenstockError, match="cannot be reached") as caught,
        model_lock(settings, "spills"),
    ):
        pytest.fail("there is no database")
    assert "hunter2" not in str(caught.value)
