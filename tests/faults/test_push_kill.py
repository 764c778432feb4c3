"""kill -9 of the process that takes pushed events: what was answered is kept, and once."""

import random
import subprocess
import sys
import time
from pathlib import Path

from penstock.data.events.push_log import PushLog

TABLE = "shop.orders"
# Appends bodies of two events and says so after each; ends only by a kill.
WRITER = """
import os
import sys
from penstock.data.events.push_log import Pushed, PushLog

log = PushLog(sys.argv[1])
body = int(sys.argv[2])
sender = b"" if sys.argv[3] == "guard on" else b"%d" % os.getpid()
while True:
    events = [b"%d.0" % body, b"%d.1" % body]
    digest = b"%d by %s" % (body, sender)
    log.append([Pushed("shop.orders", events, digest)])
    print(body, flush=True)
    body += 1
"""


def write_until_killed(url: str, first: int, guard: str, after_s: float) -> int:
    """Run a writer, kill it, and give the last body that it knew to be kept."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(first), guard], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    last = int(process.stdout.readline())
    time.sleep(after_s)
    process.kill()
    # What it said before it died is still in the pipe; the last line may be cut.
    said = process.stdout.read().splitlines(keepends=True)
    process.stdout.close()
    process.wait()
    return max([last, *(int(line) for line in said if line.endswith("\n"))])


def kill_and_send_again(folder: Path, guard: str, num_kills: int) -> tuple[list[bytes], int]:
    url = f"sqlite:///{folder}/log.db"
    chance = random.Random(5)
    answered = -1
    for _ in range(num_kills):
        # A client that got no answer sends the body again; one before it may be sent again too.
        answered = write_until_killed(url, max(0, answered), guard, chance.uniform(0.05, 0.3))
    log = PushLog(url)
    events = log.read(TABLE, 0, 1_000_000)
    log.close()
    assert [number for number, _ in events] == list(range(len(events)))
    return [value for _, value in events], answered


class TestKills:
    def test_what_was_answered_is_kept_once_and_in_order(self, tmp_path: Path):
        events, answered = kill_and_send_again(tmp_path, "guard on", num_kills=3)
        bodies = len(events) // 2
        # One more than was answered may be kept: the kill came between commit and answer.
        assert answered + 1 <= bodies <= answered + 2
        assert events == [b"%d.%d" % (body, n) for body in range(bodies) for n in (0, 1)]

    def test_without_digests_a_body_that_is_sent_again_counts_twice(self, tmp_path: Path):
        events, _ = kill_and_send_again(tmp_path, "guard off", num_kills=2)
        assert len(set(events)) < len(events)
