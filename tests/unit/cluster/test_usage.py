import threading
import time

import pytest

from penstock.cluster.usage import Held, Meter, Usage, held_by_this_job, of_worker
from penstock.errors import ClusterError

GB = 1_000_000_000


class TestUsage:
    def test_what_is_held_counts_by_its_time(self):
        held = Held(num_cpus=2, num_gpus=0.5, memory_bytes=3 * GB)
        assert Usage().plus(held, 10).plus(held, 10) == Usage(cpu_s=40, gpu_s=10, memory_gb_s=60)


class TestOfWorker:
    def test_a_nodes_own_resources_are_taken_as_they_are(self):
        assert of_worker({"CPU": 2, "GPU": 1, "node:1": 0.1}) == {"CPU": 2, "GPU": 1, "memory": 0}

    def test_a_placement_groups_are_counted_once(self):
        group = "a1b2c3"
        used = {f"CPU_group_0_{group}": 1, f"CPU_group_{group}": 1, f"bundle_group_{group}": 0.001}
        assert of_worker(used)["CPU"] == 1
        assert of_worker({f"GPU_group_{group}": 2})["GPU"] == 2


class TestHeldByThisJob:
    def test_a_process_that_is_no_driver_is_told_so_and_starts_no_ray(self):
        with pytest.raises(ClusterError, match="no driver"):
            held_by_this_job()


class TestMeter:
    def test_it_sums_what_it_reads_and_the_last_reading_holds_to_the_end(self):
        told = []
        meter = Meter(
            lambda: Held(num_cpus=4, num_gpus=0, memory_bytes=0), told.append, first_s=0.02
        )
        started_s = time.monotonic()
        meter.start()
        while len(told) < 3:
            time.sleep(0.01)
        usage = meter.stop()
        assert usage.cpu_s == pytest.approx(4 * (time.monotonic() - started_s), abs=0.2)
        assert [each.cpu_s for each in told] == sorted(each.cpu_s for each in told)

    def test_a_ray_that_does_not_answer_ends_no_job_and_what_it_said_last_holds(self):
        answers = iter([Held(num_cpus=1, num_gpus=0, memory_bytes=0)])
        told = []
        meter = Meter(lambda: next(answers), told.append, first_s=0.01)
        meter.start()
        while len(told) < 3:
            time.sleep(0.01)
        assert meter.stop().cpu_s > told[0].cpu_s

    def test_a_reading_that_hangs_does_not_hold_up_the_end(self, monkeypatch):
        monkeypatch.setattr("penstock.cluster.usage._LAST_WORD_S", 0.05)
        hanging = threading.Event()

        def read() -> Held:
            hanging.wait(20)
            return Held(num_cpus=1, num_gpus=0, memory_bytes=0)

        meter = Meter(read, lambda _: None)
        meter.start()
        started_s = time.monotonic()
        assert meter.stop() == Usage()
        assert time.monotonic() - started_s < 5
        hanging.set()
