"""Materializations that are killed at seeded points, each in a real process, and run again."""

import os
import random
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from cases import some_slow
from forks import forks
from payments import USE_CASE, build_features, settings_in
from penstock.errors import BusyError
from penstock.features import newest_rows
from penstock.features.materialize import materialize
from penstock.features.store import open_store
from penstock.locks import exclusive

ROWS_PER_BLOCK = 7
# 40 customers and 60 terminals; each view tells of its start and of each block.
NUM_STEPS = (1 + 6) + (1 + 9)
VIEWS = ("card_fraud_customer", "card_fraud_terminal")


def _materialize_until(storage: Path, die_at: int, *, watermark_first: bool = False) -> None:
    """Materialize, and die by SIGKILL at the given step."""
    newest_rows._ROWS_PER_BLOCK = ROWS_PER_BLOCK
    from penstock.features import materialize as room

    num_steps = 0

    def progress(_step, _done, _total=None, *, unit="rows"):
        nonlocal num_steps
        num_steps += 1
        if num_steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    if watermark_first:
        original = room.bring_newest

        def too_early(config, offline, online, view, period, **options):
            settings = settings_in(storage)
            room.note_materialized(settings, open_store(settings), view, period[1])
            return original(config, offline, online, view, period, **options)

        room.bring_newest = too_early
    materialize(settings_in(storage), USE_CASE, progress=progress)


def run(storage: Path, die_at: int, **options: bool) -> int | None:
    process = forks.Process(target=_materialize_until, args=(storage, die_at), kwargs=options)
    process.start()
    process.join()
    return process.exitcode


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("built")
    build_features(settings_in(storage))
    return storage


@pytest.fixture
def storage(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path


def stored(storage: Path) -> dict[str, set[tuple]]:
    """Every row that is online, by view."""
    connection = sqlite3.connect(storage / "online_store.db")
    found = {}
    for view in VIEWS:
        query = f'SELECT * FROM "penstock_{view}"'  # noqa: S608  # a name of ours
        found[view] = set(connection.execute(query))
    connection.close()
    return found


def watermarks(storage: Path) -> list[bool]:
    store = open_store(settings_in(storage))
    return [store.get_feature_view(view).most_recent_end_time is not None for view in VIEWS]


@pytest.fixture(scope="module")
def complete(built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[tuple]]:
    """What an undisturbed run leaves."""
    storage = tmp_path_factory.mktemp("complete")
    shutil.copytree(built, storage, dirs_exist_ok=True)
    materialize(settings_in(storage), USE_CASE)
    return stored(storage)


SEEDED = sorted(random.Random(7).sample(range(1, NUM_STEPS + 1), 10))


class TestKilledMaterialization:
    @pytest.mark.parametrize("die_at", some_slow(SEEDED, in_every_run=SEEDED[::3]))
    def test_rows_are_right_or_absent_and_the_next_run_finishes(
        self, storage: Path, complete: dict[str, set[tuple]], die_at: int
    ):
        assert run(storage, die_at) == -signal.SIGKILL
        for view, is_marked in zip(VIEWS, watermarks(storage), strict=True):
            rows, wanted = stored(storage)[view], complete[view]
            assert rows == wanted if is_marked else rows <= wanted
        materialize(settings_in(storage), USE_CASE)
        assert stored(storage) == complete
        assert watermarks(storage) == [True, True]

    def test_a_living_run_has_so_many_steps(self, storage: Path):
        # Were there fewer, the last kills would hit nothing; were there more, nothing would hit.
        assert run(storage, NUM_STEPS + 1) == 0

    def test_with_the_watermark_first_it_would_speak_of_rows_that_are_not_there(
        self, storage: Path, complete: dict[str, set[tuple]]
    ):
        assert run(storage, 3, watermark_first=True) == -signal.SIGKILL
        assert watermarks(storage)[0]
        assert stored(storage)[VIEWS[0]] != complete[VIEWS[0]]


def test_the_second_of_two_at_once_ends_with_75_and_names_the_first(storage: Path):
    lock = storage / "locks" / f"materialize-{USE_CASE}"
    with exclusive(lock, what="x"), pytest.raises(BusyError, match=f"{os.getpid()}") as refused:
        materialize(settings_in(storage), USE_CASE)
    assert refused.value.exit_code == 75
