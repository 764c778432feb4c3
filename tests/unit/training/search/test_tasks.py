"""Where a search's tasks run."""

import os
import signal

import pytest

from penstock.errors import TrainingDataError
from penstock.training.search.tasks import Here, OnRay, result_of, tasks


def double(number):
    return 2 * number


def refuse():
    raise TrainingDataError("every label is 0")


def die_once(file):
    if not file.exists():
        file.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "again"


class TestHere:
    def test_calls_run_in_their_order_and_errors_are_handed_over(self):
        running = Here()
        running.start("a", double, running.share(2), num_cpus=1)
        running.start("b", refuse, num_cpus=1)
        assert running.wait(None)[:2] == ("a", 4)
        done = running.wait(None)
        assert done.key == "b"
        assert isinstance(done.error, TrainingDataError)

    def test_what_is_cancelled_does_not_run(self):
        running = Here()
        running.start("a", refuse, num_cpus=1)
        running.cancel()
        running.start("b", double, 3, num_cpus=1)
        assert result_of(running) == 6


@pytest.mark.ray
class TestOnRay:
    @pytest.fixture(autouse=True)
    def on_ray(self, connected):
        """This process is a driver of the run's Ray."""

    def test_it_is_taken_where_there_is_one(self):
        assert isinstance(tasks(2), OnRay)

    def test_a_result_and_an_error_come_back_and_a_lost_worker_is_replaced(self, tmp_path):
        running = OnRay(2)
        running.start("a", double, running.share(2), num_cpus=1)
        assert result_of(running) == 4
        running.start("b", refuse, num_cpus=1)
        with pytest.raises(TrainingDataError):
            result_of(running)
        running.start("c", die_once, tmp_path / "died", num_cpus=1)
        assert result_of(running) == "again"
