from datetime import timedelta
from typing import Any

import pytest

from deployed import deployment, sealed
from penstock import audit
from penstock.errors import (
    BusyError,
    ClusterError,
    GateRefusedError,
    PenstockError,
    UserError,
)
from penstock.locks import exclusive
from penstock.serving import (
    ab,
    deployments,
    rolling,
    rollout_files,
)
from penstock.serving.ab_policy import Evidence
from penstock.serving.arm_counts import ArmCounts
from penstock.serving.deploy import lock_path
from penstock.serving.rollout import RolloutPlan, parse_guards
from penstock.serving.rollout_files import Rollout
from penstock.serving.sequential import ArmMoments
from penstock.serving.trial import TrialArguments
from penstock.settings import Settings
from stand_in_serve import BOTH, ONE, TWO, Serve

OTHER_FIELDS = [{"name": "STATION", "dtype": "int64"}, {"name": "level", "dtype": "float64"}]


class TestPlan:
    def test_it_is_of_what_serves_and_splits_by_the_first_field(self, serve: Serve):
        plan = serve.plan(split_by=None)
        assert (plan.from_version, plan.to_version, plan.split_by) == (1, 2, "STATION")
        assert serve.plan(split_by="amount").split_by == "amount"
        assert serve.told == serve.calls == []

    def test_where_nothing_serves_there_is_nothing_to_shift_from(self, serve: Serve):
        deployments.deployment_path(serve.settings, "spills").unlink()
        with pytest.raises(UserError, match=r"nothing of spills is served.*without --canary"):
            serve.plan()

    def test_the_version_that_serves_is_no_new_one(self, serve: Serve):
        with pytest.raises(UserError, match="version 1 of spills is served already"):
            serve.plan(1)

    def test_a_field_that_no_request_has_splits_nothing(self, serve: Serve):
        with pytest.raises(UserError, match=r"no field 'city'.*STATION, MOMENT, amount"):
            serve.plan(split_by="city")

    def test_what_contradicts_itself_is_the_users_mistake(self, serve: Serve):
        with pytest.raises(UserError, match=r"no rollout: each share must be above"):
            serve.plan(shares_percent=(50, 5))
        with pytest.raises(UserError, match=r"no rollout: min_answers: Input should be"):
            serve.plan(min_answers=-1)

    def test_a_version_for_gpus_and_one_for_cpus_do_not_share_a_replica(self, serve: Serve):
        serve.versions.append(sealed(serve.settings, 3, num_gpus_per_replica=0.5))
        with pytest.raises(UserError, match=r"are for 0 and 0\.5 GPUs.*Next: deploy it outright"):
            serve.plan(3)

    def test_versions_that_take_other_fields_do_not_share_callers(self, serve: Serve):
        serve.versions.append(sealed(serve.settings, 3, fields=OTHER_FIELDS))
        with pytest.raises(UserError, match=r"other fields: MOMENT, amount, level\. Next: callers"):
            serve.plan(3)


class TestServed:
    def test_the_new_version_takes_over_share_by_share(self, serve: Serve):
        done = serve.roll_out(shares_percent=(5, 25, 100))
        assert (done.phase, done.outcome) == ("over", "served")
        assert serve.calls == [BOTH, TWO]
        assert serve.shares == [0, 5, 25, 100, 100]
        assert serve.rollout == done

    def test_it_is_written_down_with_the_one_before_behind_it(self, serve: Serve):
        serve.roll_out()
        assert (serve.stands.version, serve.stands.earlier) == (2, (1,))

    def test_every_step_is_in_the_audit_log(self, serve: Serve):
        serve.roll_out()
        assert serve.told == ["rollout.start", "rollout.share", "rollout.share", "rollout.served"]
        start, *_ = audit.records(serve.settings)
        assert start.subject == "spills 2"
        assert "5 % of STATION to version 2" in start.facts["plan"]

    def test_replicas_are_told_what_they_must_know(self, serve: Serve):
        done = serve.roll_out(answer_within_ms=40.0)
        assert serve.trial == TrialArguments(
            rollout_id=done.id,
            is_shadow=False,
            split_by="STATION",
            answer_within_ms=40.0,
            version=2,
            digest=serve.versions[1].digest,
            package_path=serve.versions[1].path,
        )

    def test_a_share_waits_for_answers_of_its_own(self, serve: Serve):
        serve.roll_out(min_answers=3)
        assert serve.shares == [0, 5, 5, 5, 100, 100, 100, 100]

    def test_a_share_stays_for_its_time(self, serve: Serve):
        serve.roll_out(hold_s=0.05, min_answers=0)
        assert serve.shares.count(5) > 2

    def test_what_only_the_rollout_needed_is_gone(self, serve: Serve):
        done = serve.roll_out()
        assert not rollout_files.reports_folder(serve.settings, "spills", done.id).exists()

    def test_the_request_of_an_earlier_rollout_does_not_end_this_one(self, serve: Serve):
        rollout_files.ask_back(serve.settings, "spills", "of yesterday")
        assert serve.roll_out().outcome == "served"

    def test_while_it_watches_it_says_so(self, serve: Serve, monkeypatch):
        monkeypatch.setattr(rolling, "_RENEW_S", 0.0)
        watched = []
        serve.on_look = lambda: watched.append(serve.rollout.watched_at)
        serve.roll_out(shares_percent=(100,), min_answers=4)
        assert len(set(watched)) == 4


class TestShadowed:
    def test_it_answers_nobody_and_the_old_one_serves_on_alone(self, serve: Serve):
        done = serve.roll_out(mode="shadow", shares_percent=(), min_answers=3)
        assert done.outcome == "shadowed"
        assert serve.trial.is_shadow
        assert serve.calls == [BOTH, ONE]
        assert set(serve.shares) == {0}
        assert serve.stands.version == 1
        assert serve.told[-1] == "rollout.shadowed"

    def test_one_that_decides_otherwise_is_refused(self, serve: Serve):
        serve.each_look = ArmCounts(num_answers=1, num_pairs=10, num_flips=2)
        guards = parse_guards(["flip_rate<0.1"])
        with pytest.raises(GateRefusedError, match=r"flip_rate<0\.1 is broken"):
            serve.roll_out(mode="shadow", shares_percent=(), guards=guards)


AB = {"mode": "ab", "shares_percent": (50,), "hold_s": 60.0, "outcome": "brier"}
BAD_HALF = ArmMoments(num_units=500, num_outcomes=500, mean=0.5, variance=1, outcome_variance=1)


class TestAb:
    """The statistics are `sequential`'s; here a look finds one version better, or none."""

    @pytest.fixture
    def plan(self, serve: Serve) -> RolloutPlan:
        named = {"model": "spills", "from_version": 1, "to_version": 2, "split_by": "STATION"}
        return RolloutPlan.model_validate({**named, **AB})

    @pytest.fixture
    def truths(self, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
        """The new version's mean; the old one's is 0.5, and less is better."""
        means = {"new": 0.5}

        def look(_: Settings, rollout: Rollout, __: object) -> Evidence:
            new = BAD_HALF.model_copy(update={"mean": means["new"]})
            seen = (500, 500)
            return Evidence.of(
                rollout.plan, new=new, old=BAD_HALF, num_predictions=seen, looked_s=9
            )

        monkeypatch.setattr(ab, "look", look)
        return means

    def test_the_better_new_version_takes_over(self, serve: Serve, plan, truths):
        truths["new"] = 0.0
        done = serve.roll_out(plan)
        assert (done.outcome, done.evidence.is_new_better) == ("served", True)
        assert done.reason.startswith("version 2 is better: brier 0 against 0.5")
        assert serve.calls == [BOTH, TWO]
        assert set(serve.shares) == {0, 50}
        end = list(audit.records(serve.settings))[-1]
        assert (end.action, end.facts["reason"]) == ("rollout.served", done.reason)

    def test_the_better_old_version_stays(self, serve: Serve, plan, truths):
        truths["new"] = 1.0
        with pytest.raises(GateRefusedError, match="taken back: version 1 is better"):
            serve.roll_out(plan)
        assert serve.calls == [BOTH, ONE]
        assert (serve.rollout.outcome, serve.stands.version) == ("back", 1)

    def test_undecided_the_old_one_stays(self, serve: Serve, plan, truths):
        with pytest.raises(GateRefusedError, match=r"no difference found: in 0.05s, brier 0.5"):
            serve.roll_out(plan.model_copy(update={"hold_s": 0.05}))
        assert serve.stands.version == 1

    def test_a_guard_that_breaks_comes_before_any_truth(self, serve: Serve, plan, truths):
        truths["new"] = 0.0
        serve.each_look = ArmCounts(num_errors=2)
        with pytest.raises(GateRefusedError, match=r"error_rate<0\.01 is broken"):
            serve.roll_out(plan)

    @pytest.mark.parametrize(("window_s", "is_seen"), [(0.0, True), (300.0, False)])
    def test_a_version_that_breaks_late_has_no_earlier_answers_to_its_name(
        self, serve: Serve, plan, truths, monkeypatch, window_s: float, is_seen: bool
    ):
        monkeypatch.setattr(rolling, "GUARD_WINDOW_S", window_s)
        serve.each_look = ArmCounts(num_answers=1_000_000)

        def break_later() -> None:
            if len(serve.shares) > 6:
                serve.each_look = ArmCounts(num_errors=30)
            if len(serve.shares) > 12:
                rollout_files.ask_back(serve.settings, "spills", "nobody saw it")

        serve.on_look = break_later
        seen = "error_rate" if is_seen else "nobody saw it"
        with pytest.raises(GateRefusedError, match=seen):
            serve.roll_out(plan)

    def test_one_that_was_killed_goes_on_and_nobody_counts_in_between(
        self, serve: Serve, plan, truths
    ):
        truths["new"] = 0.0
        began = rollout_files.now() - timedelta(hours=1)
        watched = began + timedelta(minutes=1)
        times = {"stage_started_at": began, "watched_at": watched}
        serve.leave(plan, share_percent=50.0, **times)
        done = serve.roll_out(plan.model_copy(update={"hold_s": 60.0}))
        assert (done.id, done.outcome) == ("left", "served")
        assert done.stretches == (rollout_files.Stretch(since=began, until=watched),)
        assert done.stage_started_at > watched

    def test_killed_twice_before_it_had_its_share_again_it_has_one_gap(
        self, serve: Serve, plan, truths
    ):
        truths["new"] = 0.0
        began = rollout_files.now() - timedelta(hours=1)
        first = rollout_files.Stretch(since=began, until=began + timedelta(minutes=1))
        serve.leave(plan, share_percent=0.0, stage_started_at=began, stretches=(first,))
        assert serve.roll_out(plan).stretches == (first,)

    def test_one_that_was_decided_says_why_after_a_kill_too(self, serve: Serve, plan, truths):
        serve.leave(plan, phase="finishing", share_percent=50.0, reason="version 2 is better")
        assert serve.roll_out(plan).reason == "version 2 is better"


class TestBack:
    """Whatever ends it, the old version answers everything: by the file first, then by itself."""

    def assert_back(self, serve: Serve, reason: str) -> None:
        assert serve.calls[-1] == ONE
        assert serve.shares[-1] == 0
        assert serve.stands.version == 1
        over = serve.rollout
        assert (over.phase, over.outcome, over.share_percent) == ("over", "back", 0)
        assert reason in over.reason
        assert over.reason.endswith("version 1 serves on")
        assert serve.told[-1] == "rollout.back"
        assert rollout_files.reports(serve.settings, over) == []

    def test_where_a_guard_breaks(self, serve: Serve):
        serve.each_look = ArmCounts(num_errors=2)
        with pytest.raises(GateRefusedError, match=r"taken back: error_rate<0\.01 is broken"):
            serve.roll_out(hold_s=60)
        assert serve.shares == [0, 5, 0]
        self.assert_back(serve, "error_rate<0.01 is broken")

    def test_where_somebody_asks(self, serve: Serve):
        serve.on_look = lambda: rollout_files.ask_back(serve.settings, "spills", "alerts")
        with pytest.raises(GateRefusedError, match="taken back: alerts"):
            serve.roll_out(hold_s=60)
        assert rollout_files.asked_back(serve.settings, "spills") is None
        self.assert_back(serve, "alerts")

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), OSError("disk full")])
    def test_where_the_process_is_stopped(self, serve: Serve, error: BaseException):
        def stop() -> None:
            raise error

        serve.on_look = stop
        with pytest.raises(type(error)):
            serve.roll_out(hold_s=60)
        self.assert_back(serve, repr(error))

    @pytest.mark.parametrize("call", [BOTH, TWO])
    def test_where_replicas_do_not_come_up(self, serve: Serve, call: str):
        serve.fails = {call: ClusterError("no replica was ready")}
        with pytest.raises(ClusterError, match="no replica was ready"):
            serve.roll_out()
        self.assert_back(serve, "no replica was ready")

    def test_where_no_replica_says_what_it_counts(self, serve: Serve, monkeypatch):
        monkeypatch.setattr(rolling, "_WAIT_FOR_REPORT_S", 0.01)
        monkeypatch.setattr(rollout_files, "reports", lambda *_: [])
        with pytest.raises(ClusterError, match="no replica says"):
            serve.roll_out()
        self.assert_back(serve, "no replica says")

    def test_where_even_its_end_fails(self, serve: Serve, monkeypatch):
        append = audit.append

        def fails_at_the_end(settings: Settings, action: str, *told: Any) -> None:
            if action == "rollout.served":
                raise PenstockError("the audit log is damaged")
            append(settings, action, *told)

        monkeypatch.setattr(audit, "append", fails_at_the_end)
        with pytest.raises(PenstockError, match="damaged"):
            serve.roll_out()
        self.assert_back(serve, "the audit log is damaged")

    def test_where_going_back_fails_too_the_first_error_is_told(self, serve: Serve):
        serve.each_look = ArmCounts(num_errors=2)
        serve.fails = {ONE: OSError("disk full")}
        with pytest.raises(GateRefusedError, match="error_rate"):
            serve.roll_out()
        assert "going back failed too (disk full)" in serve.rollout.reason
        assert serve.rollout.share_percent == 0


class TestLeft:
    """A process was killed, and the same command is given again."""

    def test_it_goes_on_where_it_stood(self, serve: Serve):
        left = serve.leave(serve.plan(), stage=1, share_percent=100.0)
        done = serve.roll_out(left.plan)
        assert (done.id, done.outcome) == ("left", "served")
        assert serve.calls == [BOTH, TWO]
        # Nothing while replicas start, when nobody looks at the guards.
        assert serve.shares == [0, 100, 100]
        assert serve.told == ["rollout.share", "rollout.served"]

    def test_one_that_had_held_every_share_only_ends(self, serve: Serve):
        left = serve.leave(serve.plan(), phase="finishing", stage=1, share_percent=100.0)
        assert serve.roll_out(left.plan).outcome == "served"
        assert serve.calls == [TWO]

    def test_one_that_is_written_down_as_served_only_ends(self, serve: Serve):
        left = serve.leave(serve.plan(), phase="finishing", stage=1, share_percent=100.0)
        deployments.record(serve.settings, left.new)
        assert serve.roll_out(serve.plan()).outcome == "served"
        assert serve.calls == [TWO]

    def test_with_another_plan_it_is_refused_and_nothing_changes(self, serve: Serve):
        left = serve.leave(serve.plan())
        with pytest.raises(UserError, match=r"its plan is another.*penstock rollback"):
            serve.roll_out(shares_percent=(50, 100))
        assert serve.calls == []
        assert serve.rollout == left

    def test_one_that_is_over_is_not_gone_on_with(self, serve: Serve):
        left = serve.leave(serve.plan(), phase="over", outcome="back")
        assert serve.roll_out(left.plan).id != "left"

    def test_one_of_a_ray_that_is_gone_has_nothing_to_go_on_from(self, serve: Serve):
        left = serve.leave(serve.plan())
        serve.applications = {}
        with pytest.raises(UserError, match="nothing of spills is served"):
            serve.roll_out(left.plan)


class TestRefused:
    def test_a_plan_of_what_no_longer_serves(self, serve: Serve):
        plan = serve.plan()
        deployments.record(serve.settings, deployment(serve.versions[1]))
        with pytest.raises(UserError, match=r"version 2 of spills is served, and not version 1"):
            serve.roll_out(plan)
        assert (serve.calls, serve.rollout) == ([], None)

    def test_while_another_changes_the_deployment(self, serve: Serve):
        plan = serve.plan()
        with exclusive(lock_path(serve.settings, "spills"), what="x"), pytest.raises(BusyError):
            serve.roll_out(plan)
        assert (serve.calls, serve.rollout) == ([], None)
