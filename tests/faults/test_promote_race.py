"""Several processes promote at once, again and again: exactly one of them wins each time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bundles import add_version, empty_tracking_database, new_project
from cases import some_slow
from forks import forks
from penstock.errors import BusyError
from penstock.settings import Settings

NUM_RACERS = 3


def race(settings: Settings, own: tuple[int, int], guarded: bool, start: Any, pipe: Any) -> None:
    """One process: at each start, promote the one of its own versions that is not champion."""
    from penstock.registry import promotion

    if not guarded:
        look = promotion._compare

        def wait_and_look(*arguments: Any) -> Any:
            # All have seen the champion that they expect, and none has moved it yet.
            start.wait(60)
            return look(*arguments)

        promotion.model_lock = lambda *_, **__: contextlib.nullcontext()
        promotion._compare = wait_and_look
        # Who comes as far as this has won; writing all at once would trip over the database.
        promotion.ModelRegistry.move = lambda *_: None
    pipe.send("ready")
    while (champion := pipe.recv()) is not None:
        version = next(number for number in own if number != champion)
        start.wait(60)
        try:
            move = promotion.promote(
                settings,
                "spills",
                version,
                expected=champion,
                force_reason="race",
                downgrade=True,
            )
            pipe.send(move.to_version)
        except BusyError:
            pipe.send(None)


@contextlib.contextmanager
def racers(settings: Settings, *, guarded: bool) -> Iterator[list[Any]]:
    start = forks.Barrier(NUM_RACERS)
    pipes, processes = [], []
    for number in range(NUM_RACERS):
        ours, theirs = forks.Pipe()
        own = (2 + 2 * number, 3 + 2 * number)
        process = forks.Process(target=race, args=(settings, own, guarded, start, theirs))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        for pipe in pipes:
            assert pipe.recv() == "ready"
        yield pipes
        for pipe in pipes:
            pipe.send(None)
    finally:
        for process in processes:
            process.join(10)
            process.kill()


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_tracking_database(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Settings:
    from penstock.registry.promotion import promote

    made = new_project(tmp_path_factory.mktemp("raced"), empty_database)
    for number in range(1, 2 + 2 * NUM_RACERS):
        add_version(made, f"run-{number}")
    promote(made, "spills", 1, expected=None)
    return made


def run_race(pipes: list[Any], champion: int) -> list[int]:
    """Give the versions whose promotion was reported as done."""
    for pipe in pipes:
        pipe.send(champion)
    results = []
    for pipe in pipes:
        assert pipe.poll(60)
        results.append(pipe.recv())
    return [version for version in results if version is not None]


@pytest.mark.parametrize("num_races", some_slow((8, 160), in_every_run={8}))
def test_of_several_promotions_at_once_exactly_one_wins_and_the_others_are_told(
    settings, num_races: int
):
    from penstock.registry.versions import ModelRegistry

    registry = ModelRegistry(settings)
    line = [registry.aliases("spills")["champion"]]
    with racers(settings, guarded=True) as pipes:
        for _ in range(num_races):
            winners = run_race(pipes, line[-1])
            assert len(winners) == 1
            assert registry.aliases("spills")["champion"] == winners[0]
            assert registry.aliases("spills")["previous_champion"] == line[-1]
            line += winners
    moved_to = [move.to_version for move in registry.moves("spills")]
    assert moved_to[-len(line) :] == line


def test_without_the_lock_all_of_them_would_win_the_same_race(settings):
    from penstock.registry.versions import ModelRegistry

    champion = ModelRegistry(settings).aliases("spills")["champion"]
    with racers(settings, guarded=False) as pipes:
        assert len(run_race(pipes, champion)) == NUM_RACERS
