"""kill -9 of who answers and of who collects: acknowledged feedback is in the table, and once."""

import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from feedback import JSON, about, kept, post, registered
from forks import forks
from payments import USE_CASE, settings_in
from penstock.data.events.push_log import Pushed, PushLog
from penstock.serving.feedback import FeedbackIntake
from penstock.serving.feedback_collection import collect_feedback
from waiting import wait_for

NUM_KILLS = 3


def answer_until_killed(storage: Path, first: int, guard: str, acknowledged: Path) -> None:
    """Take feedback of one prediction after the other, and note each that was answered."""
    intake = FeedbackIntake(settings_in(storage))
    # Who sends a body again under another key says that it is another one.
    sender = b"%d" % os.getpid() if guard == "no body is known again" else b"one"
    if guard == "answered before it is kept":
        answer_first(intake)
    number = first
    while True:
        headers = (JSON, (b"idempotency-key", sender))
        [answer] = post(intake, about(f"a-{number}"), headers=headers)
        assert answer.status == 202, answer.body
        with acknowledged.open("a") as out:
            out.write(f"{number}\n")
        number += 1


def answer_first(intake: FeedbackIntake) -> None:
    """Let the intake answer at once, and keep what it answered when there is time."""
    waiting: list[Pushed] = []

    def put(bodies: Sequence[Pushed]) -> list[Any]:
        waiting.extend(bodies)
        return [0] * len(bodies)

    def write() -> None:
        log = PushLog.of(intake._settings)
        while True:
            time.sleep(0.3)
            log.append([waiting.pop(0) for _ in range(len(waiting))])

    intake._append_now = put
    threading.Thread(target=write, daemon=True).start()


def collect_until_killed(storage: Path) -> None:
    while True:
        collect_feedback(settings_in(storage), USE_CASE)


def kill_and_send_again(storage: Path, guard: str) -> tuple[list[str], int]:
    """Kill both again and again; give the ids in the table, and the last that was answered."""
    settings = registered(storage)
    acknowledged = storage / "acknowledged"
    acknowledged.touch()
    chance = random.Random(7)

    def last() -> int:
        # The last line may be cut.
        lines = acknowledged.read_text().rpartition("\n")[0].split()
        return int(lines[-1]) if lines else 0

    for _ in range(NUM_KILLS):
        # A client that got no answer sends the body again; one before it may be sent again too.
        before = last()
        processes = [
            forks.Process(target=answer_until_killed, args=(storage, before, guard, acknowledged)),
            forks.Process(target=collect_until_killed, args=(storage,)),
        ]
        for process in processes:
            process.start()
        wait_for(lambda before=before: last() > before + 2, timeout_s=60)
        time.sleep(chance.uniform(0.05, 0.4))
        for process in chance.sample(processes, 2):
            process.kill()
            process.join()
    collect_feedback(settings, USE_CASE)
    return [row["prediction_id"] for row in kept(settings)], last()


def test_what_was_answered_is_in_the_table_and_once(tmp_path: Path):
    found, answered = kill_and_send_again(tmp_path, "guard on")
    # One more than was answered may be kept: the kill came between commit and answer.
    assert answered + 1 <= len(found) <= answered + 2
    assert sorted(found) == sorted(f"a-{number}" for number in range(len(found)))


@pytest.mark.parametrize(
    ("guard", "is_lost"), [("answered before it is kept", True), ("no body is known again", False)]
)
def test_without_the_guard_feedback_is_lost_or_doubled(tmp_path: Path, guard: str, is_lost: bool):
    found, answered = kill_and_send_again(tmp_path, guard)
    if is_lost:
        assert {f"a-{number}" for number in range(answered + 1)} - set(found)
    else:
        assert len(set(found)) < len(found)
