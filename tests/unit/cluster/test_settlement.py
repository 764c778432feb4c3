from datetime import UTC, datetime

from penstock.cluster import connection, ledger
from penstock.cluster.ledger import JobCost
from penstock.cluster.settlement import settle_open_records
from penstock.cluster.usage import Usage
from penstock.errors import ClusterError
from penstock.settings import Settings

NOW = datetime(2024, 3, 15, tzinfo=UTC)
RUNNING = JobCost(
    job_id="train-1",
    kind="train",
    use_case="dam",
    state="running",
    started=NOW,
    seen=NOW,
    usage=Usage(cpu_s=7),
)


def test_where_no_ray_is_up_a_job_that_ran_is_lost_and_what_it_took_is_kept(tmp_path):
    settings = Settings(project_root=tmp_path)
    ledger.write(settings, RUNNING)
    assert settle_open_records(settings) == 1
    (settled,) = ledger.read_all(settings)
    assert (settled.state, settled.usage.cpu_s) == ("lost", 7)
    assert settle_open_records(settings) == 0


def test_a_ray_that_does_not_answer_says_nothing_of_its_jobs(tmp_path, monkeypatch):
    class Silent:
        def get(self, *_, **__):
            raise ClusterError("no answer")

    monkeypatch.setattr(connection, "endpoint", lambda _: Silent())
    settings = Settings(project_root=tmp_path)
    ledger.write(settings, RUNNING)
    assert settle_open_records(settings) == 0
    assert ledger.read_all(settings) == [RUNNING]
