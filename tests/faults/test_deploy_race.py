"""Several processes deploy one model at once: one does, the others are told, and none mixes in."""

import contextlib
import itertools
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

import deploy_racer
from cases import some_slow
from penstock import audit
from penstock.errors import BusyError
from penstock.serving.deploy import find_deployment, undeploy
from penstock.settings import Settings
from served_versions import callers, register
from small_model import SmallRun

pytestmark = pytest.mark.ray

MODEL, NUM_RACERS = "raced", 3


@pytest.fixture(scope="module")
def settings(small_run: tuple[Settings, SmallRun]) -> Iterator[Settings]:
    """Three versions of a model on shared replicas, where a deploy takes half a second."""
    mine, run = small_run
    for _ in range(NUM_RACERS):
        register(mine, run, MODEL, shared=True)
    try:
        yield mine
    finally:
        undeploy(mine, MODEL)


@contextlib.contextmanager
def racers(settings: Settings, kind: str) -> Iterator[list["subprocess.Popen[str]"]]:
    file = settings.storage_path / "settings.json"
    file.write_text(settings.model_dump_json())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [sys.executable, deploy_racer.__file__, str(file), MODEL, kind]
    processes = [
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(NUM_RACERS)
    ]
    try:
        for each in processes:
            assert told(each) == "ready"
        yield processes
    finally:
        for each in processes:
            each.kill()
            # Waits, and closes its pipes.
            each.communicate()


def told(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def run_race(processes: list["subprocess.Popen[str]"], first: int) -> dict[int, str]:
    """Give the exit code of each version's deploy."""
    versions = [1 + (first + number) % NUM_RACERS for number in range(NUM_RACERS)]
    for process, version in zip(processes, versions, strict=True):
        assert process.stdin is not None
        process.stdin.write(f"{version}\n")
        process.stdin.flush()
    return {v: told(process) for v, process in zip(versions, processes, strict=True)}


def steps_of(settings: Settings) -> list[tuple[str, str]]:
    """What the audit log has of the model's deploys."""
    return [
        (record.action, record.subject)
        for record in audit.records(settings)
        if record.subject.startswith(f"{MODEL} ") and record.action.startswith("deployment.")
    ]


@pytest.mark.parametrize("num_races", some_slow((4, 40), in_every_run={4}))
def test_whoever_does_not_deploy_is_told_so_and_nobody_mixes_in(settings, num_races: int):
    before = len(steps_of(settings))
    with racers(settings, "guarded") as processes:
        codes = Counter(run_race(processes, 0).values())
        with callers(port_of(settings), MODEL, threads=1) as asked:
            for race in range(1, num_races):
                ended = run_race(processes, race)
                winners = [version for version, code in ended.items() if code == "0"]
                assert winners
                codes.update(ended.values())
                standing = find_deployment(settings, MODEL)
                assert standing is not None
                assert standing.version in winners
    assert asked.lost == []
    steps = steps_of(settings)[before:]
    assert len(steps) == 2 * codes["0"]
    for start, end in zip(steps[::2], steps[1::2], strict=True):
        assert (start[0], end) == ("deployment.start", ("deployment.serve", start[1]))
    # One that ends before another begins lets it win too; most are at it at the same time.
    assert codes.keys() == {"0", str(BusyError.exit_code)}
    assert codes["0"] < 2 * num_races


def port_of(settings: Settings) -> int:
    found = find_deployment(settings, MODEL)
    assert found is not None
    return int(found.url.rsplit(":", 1)[1])


def test_without_the_lock_they_mix(settings):
    before = len(steps_of(settings))
    with racers(settings, "unguarded") as processes:
        run_race(processes, 0)
    actions = [action for action, _ in steps_of(settings)[before:]]
    assert ("deployment.start", "deployment.start") in itertools.pairwise(actions)
