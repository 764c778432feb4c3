import time
from datetime import UTC, datetime

import pytest

from penstock.cluster import ledger
from penstock.cluster.account import Account, left
from penstock.cluster.ledger import BY_HAND, JobCost
from penstock.cluster.usage import Held, Usage, held_by_this_job
from penstock.errors import GateRefusedError
from penstock.settings import Settings
from waiting import wait_for

MANY = Held(num_cpus=1000, num_gpus=0, memory_bytes=0)


def settings_in(folder, **budgets: float) -> Settings:
    return Settings(project_root=folder, cost={"per_cpu_hour": 3.6, "budgets_per_month": budgets})


def spend(settings: Settings, money: float) -> None:
    now = datetime.now(UTC)
    usage = Usage(cpu_s=money * 1000)
    made = JobCost(
        job_id="before",
        kind="train",
        use_case="dam",
        state="failed",
        started=now,
        seen=now,
        usage=usage,
    )
    ledger.write(settings, made)


class TestAccount:
    def test_a_job_has_a_record_from_its_first_moment_to_its_end(self, tmp_path, monkeypatch):
        monkeypatch.setattr("penstock.cluster.account.held_by_this_job", lambda: MANY)
        settings = settings_in(tmp_path)
        account = Account(settings, "train", "dam")
        account.open()
        (begun,) = ledger.read_all(settings)
        assert (begun.state, begun.use_case, begun.kind) == ("running", "dam", "train")
        assert begun.job_id.startswith(BY_HAND)
        account.describe(subject="forest", num_rows=10)
        account.describe(model_versions=("spills 3",))
        time.sleep(0.05)
        account.close("failed")
        (ended,) = ledger.read_all(settings)
        assert (ended.state, ended.subject, ended.num_rows) == ("failed", "forest", 10)
        assert ended.model_versions == ("spills 3",)
        assert ended.usage.cpu_s >= 50

    def test_a_disk_that_takes_no_record_ends_no_job(self, tmp_path, monkeypatch, capfd):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("penstock.cluster.account.held_by_this_job", lambda: MANY)
        monkeypatch.setattr(ledger, "write", full)
        account = Account(settings_in(tmp_path), "train", "dam")
        account.open()
        account.close("succeeded")
        assert "No space left" in capfd.readouterr().err

    def test_a_job_that_spends_the_rest_of_the_budget_is_ended(self, tmp_path, monkeypatch):
        monkeypatch.setattr("penstock.cluster.account.held_by_this_job", lambda: MANY)
        settings = settings_in(tmp_path, dam=0.1)
        account = Account(settings, "train", "dam")
        account.open()
        try:
            with pytest.raises(GateRefusedError, match=r"budget .*0\.10 USD .*penstock cost dam"):
                time.sleep(60)
        finally:
            account.close("failed")

    def test_without_a_budget_the_same_job_goes_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr("penstock.cluster.account.held_by_this_job", lambda: MANY)
        settings = settings_in(tmp_path, other=0.1)
        account = Account(settings, "train", "dam")
        account.open()
        wait_for(lambda: ledger.read_all(settings)[0].usage.cpu_s > 200)
        account.close("succeeded")


class TestLeft:
    def test_a_use_case_without_a_budget_may_spend_what_it_takes(self, tmp_path):
        settings = settings_in(tmp_path, other=1.0)
        spend(settings, 100)
        assert left(settings, "dam") is None
        assert left(settings, None) is None

    def test_what_is_left_is_the_budget_less_what_the_month_cost(self, tmp_path):
        settings = settings_in(tmp_path, dam=5.0)
        spend(settings, 2)
        assert left(settings, "dam") == pytest.approx(3.0)

    def test_a_budget_that_is_spent_refuses_with_what_to_do(self, tmp_path):
        settings = settings_in(tmp_path, dam=5.0)
        spend(settings, 5)
        with pytest.raises(GateRefusedError, match=r"cost\.budgets_per_month\.dam") as refused:
            left(settings, "dam")
        assert refused.value.exit_code == 3


@pytest.mark.ray
class TestHeldByThisJob:
    def test_it_is_what_ray_has_given_to_tasks_and_actors_and_one_cpu_for_the_driver(
        self, connected
    ):
        import ray

        class Holder:
            def here(self) -> bool:
                return True

        before = held_by_this_job()
        holder = ray.remote(num_cpus=1.5)(Holder).remote()
        assert ray.get(holder.here.remote())
        during = held_by_this_job()
        assert during.num_cpus == pytest.approx(before.num_cpus + 1.5)
        assert during.memory_bytes > before.memory_bytes > 1 << 20
        ray.kill(holder)
