"""What the commands around a rollout refuse before a job starts, give to it, and show."""

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from bundles import write_use_case
from deployed import deployment, sealed
from penstock.errors import NotFoundError, UserError
from penstock.registry import versions
from penstock.registry.versions import ModelVersion
from penstock.serving import deployments, rollout_files
from penstock.serving.ab_policy import Evidence
from penstock.serving.rollout import RolloutPlan
from penstock.serving.rollout_files import LEASE_S, Rollout, now
from penstock.serving.sequential import ArmMoments
from penstock.settings import Settings

Run = Callable[..., str]


@pytest.fixture
def served(empty_project: Settings, monkeypatch: pytest.MonkeyPatch) -> list[ModelVersion]:
    """Version 1 of the model serves, version 2 is the champion."""
    write_use_case(empty_project.project_root)
    made = [sealed(empty_project, number) for number in (1, 2)]
    deployments.record(empty_project, deployment(made[0]))
    # The registry is MLflow's, whose tables take seconds to make.
    monkeypatch.setattr(versions, "resolve", lambda _, __, number: made[(number or 2) - 1])
    return made


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand for the job: what it was given, and what it answers."""
    room: dict[str, Any] = {}

    def run_job(_settings: Settings, script: str, arguments: list[str], **_: Any) -> Any:
        room["given"] = [script, *arguments]
        return room["answer"].model_dump(mode="json")

    monkeypatch.setattr("penstock.cluster.jobs.run_job", run_job)
    return room


def rollout_of(made: list[ModelVersion], **changes: Any) -> Rollout:
    plan = RolloutPlan(
        model="spills",
        from_version=1,
        to_version=2,
        shares_percent=(5, 100),
        hold_s=60,
        split_by="STATION",
    )
    done = Rollout(
        id="r1",
        plan=plan,
        old=deployment(made[0]),
        new=deployment(made[1]),
        phase="over",
        outcome="served",
        reason="every guard held",
        stage_started_at=now(),
        watched_at=now(),
    )
    return done.model_copy(update=changes)


class TestPlan:
    def test_it_is_printed_and_nothing_else_happens(self, run_in: Run, served, jobs):
        told = run_in(
            "deploy", "dam", "--canary", "5,100", "--hold", "90s", "--guard", "p99_ms<50", "--plan"
        )
        assert told.startswith("canary of spills: version 1 to 2\n  1. start replicas")
        assert "5 % of STATION to version 2; hold 90s and 1 answer of it" in told
        assert "p99_ms<50, else version 1 answers everything" in told
        assert jobs == {}

    def test_as_json_it_is_the_plan_that_a_job_takes(self, run_in: Run, served):
        told = run_in("deploy", "dam", "--shadow", "--split-by", "amount", "--plan", "--json")
        plan = RolloutPlan.model_validate_json(told)
        assert (plan.mode, plan.split_by, plan.shares_percent) == ("shadow", "amount", ())
        assert [*map(str, plan.guards)] == ["error_rate<0.01"]

    def test_of_an_ab_it_says_by_what_and_until_when(self, run_in: Run, served, jobs):
        told = run_in("deploy", "dam", "--ab", "50", "--outcome", "brier", "--plan")
        assert told.startswith("ab of spills: version 1 to 2\n")
        assert "undecided after 14d: by those of version 1" in told
        assert jobs == {}

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--plan",), "say --canary 5,25,50,100, --shadow or --ab 50"),
            (("--canary", "5,x"), "are no numbers"),
            (("--canary", ""), "are no numbers"),
            (("--canary", "50,5"), "each share must be above"),
            (("--canary", "5", "--shadow"), "a shadow answers nobody"),
            (("--canary", "5", "--hold", "soon"), "no duration"),
            (("--canary", "5", "--guard", "p99_ms"), "as in p99_ms<50"),
            (("--canary", "5", "--guard", "p9_ms<1"), "did you mean 'p99_ms'"),
            (("--canary", "5", "--guard", "flip_rate<1"), "which a shadow has only"),
            (("--canary", "5", "--split-by", "city"), "no field 'city'"),
            (("--canary", "5", "--answer-within-ms", "0"), "greater than 0"),
            (("--canary", "5", "--version", "1"), "is served already"),
            (("--outcome", "brier"), "are of a rollout"),
            (("--ab", "50"), "log_loss, brier, accuracy"),
            (("--ab", "50", "--outcome", "brier", "--hold", "5m"), "or say --max-hold"),
            (("--ab", "50", "--outcome", "brier", "--shadow"), "a rollout of its own"),
            (("--canary", "5", "--alpha", "0.1"), "are of --ab"),
            (("--ab", "0", "--outcome", "brier"), "above 0 and below 100"),
        ],
    )
    def test_what_cannot_be_rolled_out_is_refused_before_a_job_starts(
        self, run_in: Run, served, jobs, options: tuple[str, ...], words: str
    ):
        with pytest.raises(UserError) as caught:
            run_in("deploy", "dam", *options)
        assert words in str(caught.value)
        assert caught.value.exit_code == 2
        assert jobs == {}


class TestDeploy:
    def test_the_job_gets_the_plan_and_its_end_is_told(self, run_in: Run, served, jobs):
        jobs["answer"] = rollout_of(served)
        told = run_in("deploy", "dam", "--canary", "5,100", "--hold", "1m")
        assert told == "spills: version 2 answers everything\n"
        script, use_case, option, plan = jobs["given"]
        assert (script, use_case, option) == ("deploy", "dam", "--rollout")
        assert RolloutPlan.model_validate_json(plan) == rollout_of(served).plan

    def test_of_a_shadow_the_old_version_serves_on(self, run_in: Run, served, jobs):
        jobs["answer"] = rollout_of(served, outcome="shadowed")
        assert "the shadow is over; version 1 serves on" in run_in("deploy", "dam", "--shadow")

    def test_as_json_only_the_end_is_printed(self, run_in: Run, served, jobs):
        jobs["answer"] = rollout_of(served)
        done = json.loads(run_in("deploy", "dam", "--canary", "5,100", "--json"))
        assert (done["id"], done["outcome"]) == ("r1", "served")


class TestAb:
    """What `penstock rollout` says of one; its plan is held to real packages elsewhere."""

    @staticmethod
    def told(run_in: Run, served, project, *, units: int, mean: float, **changes: Any) -> str:
        plan = rollout_of(served).plan.model_copy(
            update={"mode": "ab", "shares_percent": (50.0,), "outcome": "brier"}
        )
        new, old = (
            ArmMoments(
                num_units=units, num_outcomes=2 * units, mean=m, variance=1, outcome_variance=1
            )
            for m in (mean, 0.5)
        )
        found = Evidence.of(plan, new=new, old=old, num_predictions=(2_000, 2_100), looked_s=600)
        state = {"phase": "shifting", "share_percent": 50.0, "outcome": None, "evidence": found}
        rollout_files.write(project, rollout_of(served, plan=plan, **{**state, **changes}))
        return run_in("rollout", "dam")

    def test_undecided_it_shows_both_arms_and_what_is_missing(
        self, run_in: Run, served, empty_project
    ):
        told = self.told(run_in, served, empty_project, units=900, mean=0.4)
        assert re.search(r"1 +2,100 +1,800 +900 +0\.5 *\n", told)
        assert re.search(r"2 +2,000 +1,800 +900 +0\.4 *\n", told)
        assert re.search(r"difference \(new - old\): -0\.1, in \[-0\.\d+, \+0\.\d+\]", told)
        assert "at every moment with 0.95; p 0." in told
        assert re.search(r"undecided: truths of some [\d,]+ more STATION would decide", told)
        assert "as of 10m" in told
        assert json.loads(run_in("rollout", "dam", "--json"))["evidence"]["alpha"] == 0.05

    def test_decided_it_says_which(self, run_in: Run, served, empty_project):
        assert "version 2 is better" in self.told(
            run_in, served, empty_project, units=900, mean=0.1
        )

    def test_of_too_few_it_says_how_many_are_missing(self, run_in: Run, served, empty_project):
        told = self.told(run_in, served, empty_project, units=30, mean=0.1)
        assert "too few: truths of 140 more STATION are missing" in told
        told = self.told(run_in, served, empty_project, units=900, mean=0.5)
        assert "no telling how many truths are missing" in told


class TestRollout:
    def test_where_there_was_none_it_says_so(self, run_in: Run, served):
        with pytest.raises(NotFoundError, match="spills had no rollout"):
            run_in("rollout", "dam")

    def test_one_under_way_shows_its_stage_and_share(self, run_in: Run, served, empty_project):
        under_way = rollout_of(served, phase="shifting", share_percent=5.0, outcome=None)
        rollout_files.write(empty_project, under_way)
        told = run_in("rollout", "dam")
        assert "canary of spills: version 1 to 2" in told
        assert "shifting: stage 1 of 2, 5 % to version 2" in told
        assert "gone" not in told
        assert json.loads(run_in("rollout", "dam", "--json"))["share_percent"] == 5.0

    def test_one_that_nobody_watches_gives_nothing_and_the_ways_on_are_told(
        self, run_in: Run, served, empty_project
    ):
        left = now() - timedelta(seconds=LEASE_S + 1)
        rollout_files.write(
            empty_project,
            rollout_of(served, phase="shifting", share_percent=5.0, watched_at=left),
        )
        told = run_in("rollout", "dam")
        assert "0 % to version 2" in told
        assert "Its process is gone" in told
        assert "penstock rollback" in told

    def test_one_that_is_over_shows_how_it_ended(self, run_in: Run, served, empty_project):
        reason = "asked for: alerts [/see] the log"
        rollout_files.write(empty_project, rollout_of(served, outcome="back", reason=reason))
        assert f"over: back, {reason}" in run_in("rollout", "dam")


class TestRollback:
    def test_where_nothing_served_before_there_is_no_way_back(self, run_in: Run, served):
        with pytest.raises(NotFoundError, match="nothing of spills served before version 1"):
            run_in("rollback", "dam")

    def test_on_another_ray_it_is_a_job_with_the_reason(
        self, run_in: Run, served, jobs, monkeypatch
    ):
        monkeypatch.setenv("PENSTOCK_RAY__ADDRESS", "http://10.0.0.1:8265")
        jobs["answer"] = deployment(served[0])
        told = run_in("rollback", "dam", "--reason", "alerts")
        assert told == "spills version 1 answers everything\n"
        assert jobs["given"] == ["deploy", "dam", "--back", "alerts"]
