from datetime import UTC, datetime, timedelta

import pytest

from penstock.cluster import ledger
from penstock.cluster.ledger import BY_HAND, JobCost, read_all, read_month, settle, spent, write
from penstock.cluster.usage import Usage
from penstock.errors import IntegrityError
from penstock.settings import Settings

NOW = datetime(2024, 3, 15, 12, tzinfo=UTC)


def cost(job_id: str = "train-1", **more) -> JobCost:
    facts = {
        "kind": "train",
        "use_case": "dam",
        "state": "succeeded",
        "started": NOW,
        "seen": NOW + timedelta(hours=1),
        "usage": Usage(cpu_s=3600),
    }
    return JobCost(job_id=job_id, **facts | more)


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(project_root=tmp_path, cost={"per_cpu_hour": 2.0})


class TestWrite:
    def test_a_job_is_counted_once_however_often_it_is_written(self, settings):
        write(settings, cost(state="running", usage=Usage(cpu_s=10)))
        write(settings, cost())
        assert read_month(settings, NOW) == [cost()]
        assert spent(settings, "dam", now=NOW) == pytest.approx(2.0)

    def test_a_job_belongs_to_the_month_in_which_it_began(self, settings):
        before = cost("train-0", started=NOW - timedelta(days=20))
        write(settings, cost())
        write(settings, before)
        assert read_month(settings, NOW) == [cost()]
        assert read_all(settings) == [before, cost()]

    @pytest.mark.parametrize("job_id", ["../../../x", "a/b", ".hidden", "é" * 300])
    def test_a_job_of_any_name_stays_in_its_folder(self, settings, job_id):
        write(settings, cost(job_id))
        assert [each.job_id for each in read_all(settings)] == [job_id]
        assert len(list((settings.storage_path / "costs" / "2024-03").iterdir())) == 1

    def test_other_use_cases_do_not_count(self, settings):
        write(settings, cost(use_case="other"))
        assert spent(settings, "dam", now=NOW) == 0

    def test_a_record_that_cannot_be_read_is_named(self, settings):
        write(settings, cost())
        (file,) = (settings.storage_path / "costs" / "2024-03").iterdir()
        file.write_bytes(b"{")
        with pytest.raises(IntegrityError, match=r"train-1\.json"):
            read_all(settings)


class TestSettle:
    running = cost(state="running")

    @pytest.mark.parametrize(
        ("status", "state"),
        [("FAILED", "failed"), ("STOPPED", "stopped"), ("SUCCEEDED", "succeeded"), (None, "lost")],
    )
    def test_a_job_that_ended_without_a_word_is_ended_by_what_ray_says(self, status, state):
        statuses = {} if status is None else {"train-1": status}
        (settled,) = settle([self.running], statuses)
        assert (settled.state, settled.usage) == (state, self.running.usage)

    def test_one_that_runs_is_left_alone(self):
        assert settle([self.running, cost("train-2")], {"train-1": "RUNNING"}) == []

    def test_without_a_ray_nothing_can_be_running(self):
        (settled,) = settle([self.running], None)
        assert settled.state == "lost"

    def test_a_driver_that_nobody_submitted_is_not_missed_in_the_list(self):
        by_hand = cost(f"{BY_HAND}1", state="running")
        assert settle([by_hand], {}) == []
        assert ledger.settle([by_hand], None)[0].state == "lost"
