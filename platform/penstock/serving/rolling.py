"""Carries a rollout out: share by share, watched, and back where a guard breaks.

The file that replicas follow is written before anything is done, so whoever comes after a kill
knows where it stood: the same command goes on from there, `penstock rollback` goes back, and
until either comes the replicas give the new version nothing.
"""

import contextlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from penstock import audit
from penstock.errors import ClusterError, GateRefusedError, PenstockError, UserError
from penstock.logs import redact
from penstock.progress import Progress, silent
from penstock.registry.package import VerifiedPackage, verify
from penstock.registry.versions import ModelVersion
from penstock.serving import ab, application, deployments, rollout_files, server
from penstock.serving.ab_policy import GUARD_WINDOW_S, decide_ab
from penstock.serving.api_keys import own_token
from penstock.serving.arm_counts import ArmCounts
from penstock.serving.deploy import held, prepare, serve_again, standing
from penstock.serving.rollout import Decision, RolloutPlan, decide
from penstock.serving.rollout_files import Rollout, now
from penstock.settings import Settings

_RENEW_S = 2.0
_WAIT_FOR_REPORT_S = 30.0
_MAX_REASON_CHARS = 2000

Report = Callable[[str], None]


def roll_out(
    settings: Settings,
    version: ModelVersion,
    plan: RolloutPlan,
    *,
    report: Report,
    progress: Progress = silent,
) -> Rollout:
    """Shift the traffic of a model to a version as planned, or go on with a rollout that was.

    Args:
        settings: which Ray and which storage.
        version: the new one.
        plan: what to do; of the version that serves and of this one.
        report: is told what happens, one line a step.
        progress: is told how long a share has been on.

    Raises:
        UserError: nothing serves, another version than planned does, or the two take other fields.
        BusyError: another deploy of the model is under way.
        IntegrityError: a package is not the one that was registered.
        GateRefusedError: a guard broke, or somebody asked for the way back: the old one serves on.
        ClusterError: the replicas don't come up: the old one serves on.
    """
    with held(settings, plan.model):
        server.start(settings)
        rollout = _left(settings, plan) or _new(settings, version, plan)
        watch = _Watch(settings, rollout, report, progress)
        try:
            return watch.carry_out()
        except BaseException as error:
            watch.go_back(error)
            raise


def plan_rollout(settings: Settings, version: ModelVersion, **choices: Any) -> RolloutPlan:
    """Make the plan for a version, beside what serves now; nothing is done.

    Args:
        settings: which storage.
        version: the new one.
        choices: fields of `RolloutPlan`; without `split_by` it is the first field of a request.

    Raises:
        UserError: nothing is served, the plan contradicts itself, or the two versions take other
            fields.
        IntegrityError: a package is not the one that was registered.
    """
    before = deployments.find_deployment(settings, version.name)
    if before is None:
        raise UserError(
            f"nothing of {version.name} is served, so there is nothing to shift from",
            next_step="deploy it without --canary, --shadow or --ab",
        )
    left = rollout_files.find(settings, version.name)
    is_left = left is not None and not left.is_over and left.plan.to_version == version.version
    if left is not None and is_left and before.version == version.version:
        # Its process was killed behind its last step but one.
        return left.plan
    if before.version == version.version:
        raise UserError(
            f"version {version.version} of {version.name} is served already",
            next_step="name another with --version",
        )
    new = verify(Path(version.path), settings, digest=version.digest)
    old = verify(Path(before.package_path), settings, digest=before.digest)
    asked = {name: value for name, value in choices.items() if value is not None}
    try:
        plan = RolloutPlan(
            model=version.name,
            from_version=before.version,
            to_version=version.version,
            **{"split_by": new.signature.request_fields[0].name, **asked},
        )
    except ValidationError as error:
        reason = error.errors()[0]
        where = ".".join(map(str, reason["loc"]))
        what = f"{where}: {reason['msg']}" if where else reason["msg"]
        raise UserError(
            f"this is no rollout: {what.replace('Value error, ', '')}",
            next_step="see `penstock deploy --help`",
        ) from None
    _check_fields(plan, new=new, old=old)
    ab.check_plan(settings, plan, new=new, old=old)
    return plan


def _check_fields(plan: RolloutPlan, *, new: VerifiedPackage, old: VerifiedPackage) -> None:
    fields = [{f.name: f.dtype for f in p.signature.request_fields} for p in (old, new)]
    if fields[0] != fields[1]:
        differing = sorted(dict(fields[0].items() ^ fields[1].items()))
        raise UserError(
            f"versions {plan.from_version} and {plan.to_version} of {plan.model} take other "
            f"fields: {', '.join(differing)}",
            next_step="callers would be refused by one of them: deploy it outright, with the "
            "callers changed",
        )
    shares = [p.signature.serving.num_gpus_per_replica for p in (old, new)]
    if shares[0] != shares[1]:
        raise UserError(
            f"versions {plan.from_version} and {plan.to_version} of {plan.model} are for "
            f"{shares[0]:g} and {shares[1]:g} GPUs, and during a rollout one replica holds both",
            next_step="deploy it outright",
        )
    if old.signature.serving.shared != new.signature.serving.shared:
        raise UserError(
            f"one of the versions {plan.from_version} and {plan.to_version} of {plan.model} is for "
            "shared replicas, and the other for its own",
            next_step=f"penstock undeploy {plan.model}, then deploy the new one outright",
        )
    if plan.split_by not in fields[0]:
        raise UserError(
            f"requests have no field {plan.split_by!r} to split by", allowed=", ".join(fields[0])
        )


def _left(settings: Settings, plan: RolloutPlan) -> Rollout | None:
    """Find the rollout that a killed process left, if this is its plan."""
    left = rollout_files.find(settings, plan.model)
    if left is None or left.is_over or plan.model not in server.applications(settings):
        return None
    if left.plan != plan:
        raise UserError(
            f"a rollout of {plan.model} version {left.plan.to_version} was left by a process that "
            "is gone, and its plan is another",
            next_step="`penstock rollback` ends it; or give the same options, and it goes on",
        )
    return left


def _new(settings: Settings, version: ModelVersion, plan: RolloutPlan) -> Rollout:
    before = standing(settings, plan.model)
    if before is None or before.version != plan.from_version:
        found = "nothing" if before is None else f"version {before.version}"
        raise UserError(
            f"{found} of {plan.model} is served, and not version {plan.from_version}",
            next_step="make the plan anew",
        )
    new, wanted = prepare(settings, version)
    old = verify(Path(before.package_path), settings, digest=before.digest)
    _check_fields(plan, new=new, old=old)
    earlier = deployments.line(before, wanted.version)
    moment = now()
    return Rollout(
        id=uuid.uuid4().hex[:12],
        plan=plan,
        old=before,
        new=wanted.model_copy(update={"earlier": earlier}),
        phase="starting",
        stage_started_at=moment,
        watched_at=moment,
    )


class _Watch:
    """One process's work on a rollout."""

    def __init__(
        self, settings: Settings, rollout: Rollout, report: Report, progress: Progress
    ) -> None:
        self._progress = progress
        self._settings = settings
        self._rollout = rollout
        self._report = report
        self._builders: ModuleType = server.load_builders(settings)
        self._renewed_s = time.monotonic()

    def carry_out(self) -> Rollout:
        rollout, plan = self._rollout, self._rollout.plan
        if rollout.phase == "starting":
            rollout_files.begin(self._settings, rollout)
            self._save()
            self._tell("rollout.start", {"plan": "; ".join(plan.steps())})
            self._report(f"starting replicas of versions {plan.from_version} and {plan.to_version}")
        else:
            self._report(f"going on with stage {rollout.stage + 1} of {plan.num_stages}")
        if rollout.phase != "finishing":
            # Until the replicas are there nobody looks at the guards.
            self._save(share_percent=0.0, stretches=self._stretches())
            self._start_replicas()
            self._shift(rollout.stage)
        outcome = self._finish()
        self._end(outcome, self._rollout.reason or "every guard held")
        return self._rollout

    def go_back(self, error: BaseException) -> None:
        """Let the old version answer everything, whatever the error; say so in the audit log."""
        plan = self._rollout.plan
        reason = redact(error.found if isinstance(error, PenstockError) else repr(error))
        self._report(f"going back to version {plan.from_version}: {reason}")
        with contextlib.suppress(PenstockError, OSError):
            # First the file: replicas follow within a second.
            self._save(share_percent=0.0, phase="shifting")
        kept = serve_again(self._settings, self._builders, plan.model, self._rollout.old)
        with contextlib.suppress(PenstockError, OSError):
            # The end itself may have failed, when the new one was written down already.
            deployments.record(self._settings, self._rollout.old)
        with contextlib.suppress(PenstockError, OSError):
            self._end("back", f"{reason[:_MAX_REASON_CHARS]}; {kept}")

    def _start_replicas(self) -> None:
        rollout = self._rollout
        package = verify(Path(rollout.old.package_path), self._settings, digest=rollout.old.digest)
        # Replicas of both run one code, the newer one; the way back leads to the old one's own.
        both = rollout.old.model_copy(update={"code_path": rollout.new.code_path})
        trial = trial_arguments(rollout)
        application.apply(self._settings, self._builders, both, package, trial=trial)
        application.wait_until_running(self._settings, rollout.plan.model, meanwhile=self._renew)
        token = own_token(self._settings)
        application.wait_until_answering(rollout.old, token, rollout_id=rollout.id)
        deadline_s = time.monotonic() + _WAIT_FOR_REPORT_S
        while not rollout_files.reports(self._settings, rollout):
            if time.monotonic() > deadline_s:
                raise ClusterError("no replica says what it counts")
            time.sleep(rollout_files.LOOK_S)

    def _shift(self, stage: int) -> None:
        plan = self._rollout.plan
        while True:
            share = plan.share_percent(stage)
            self._save(phase="shifting", stage=stage, share_percent=share, stage_started_at=now())
            self._tell("rollout.share", {"percent": share})
            decision = self._hold(stage, share)
            if decision.action == "back":
                raise GateRefusedError(
                    f"version {plan.to_version} of {plan.model} was taken back: {decision.reason}",
                    next_step=f"version {plan.from_version} serves on; see docs/serving.md",
                )
            if decision.action == "finish":
                self._save(reason=decision.reason)
                return
            stage += 1

    def _stretches(self) -> tuple[rollout_files.Stretch, ...]:
        """Close the time that a killed process watched; what follows it is nobody's."""
        rollout = self._rollout
        if rollout.plan.mode != "ab" or not rollout.share_percent:
            return rollout.stretches
        return ab.stretches(rollout, rollout.watched_at)

    def _hold(self, stage: int, share: float) -> Decision:
        """Watch one share until it is over."""
        if self._rollout.plan.mode == "ab":
            return self._hold_ab()
        plan = self._rollout.plan
        started_s = time.monotonic()
        new_before, old_before = self._counts()
        role = f"{share:g} % to" if plan.shares_percent else "shadow of"
        what = f"stage {stage + 1} of {plan.num_stages}, {role} version {plan.to_version}"
        while True:
            new, old = self._counts()
            new, old = new.minus(new_before), old.minus(old_before)
            decision = decide(
                plan,
                stage=stage,
                held_s=time.monotonic() - started_s,
                new=new,
                old=old,
                asked_back=rollout_files.asked_back(self._settings, plan.model),
            )
            told = f"{new.num_answers} answers, {new.num_errors} failed"
            if decision.action != "hold":
                p99 = f"p99 {new.latency_ms(0.99):.3g} ms" if new.num_answers else "no latency"
                self._report(f"{what}: {told}, {p99}; {decision.reason}")
                return decision
            held_s = min(round(time.monotonic() - started_s), round(plan.hold_s))
            waits = f"; {decision.reason}" if held_s >= plan.hold_s else ""
            self._progress(f"{what}, {told}{waits}", held_s, round(plan.hold_s), unit="s")
            self._renew()
            time.sleep(rollout_files.LOOK_S)

    def _hold_ab(self) -> Decision:
        """Watch the guards until the truths have decided, or the time is over."""
        plan = self._rollout.plan
        looks = ab.Looks(self._settings, self._rollout)
        window_s = time.monotonic()
        new_before, old_before = self._counts()
        try:
            while True:
                held_s = (now() - ab.began_at(self._rollout)).total_seconds()
                evidence = looks.ask(self._rollout, held_s)
                if evidence is not None:
                    self._save(evidence=evidence)
                new, old = self._counts()
                decision = decide_ab(
                    plan,
                    held_s=held_s,
                    new=new.minus(new_before),
                    old=old.minus(old_before),
                    evidence=self._rollout.evidence,
                    is_last_look=looks.has_looked_since(plan.hold_s),
                    asked_back=rollout_files.asked_back(self._settings, plan.model),
                )
                if decision.action != "hold":
                    self._report(decision.reason)
                    return decision
                known = self._rollout.evidence
                told = looks.problem or (known.words() if known else "no truth yet")
                held = min(round(held_s), round(plan.hold_s))
                self._progress(f"A/B: {told}", held, round(plan.hold_s), unit="s")
                if time.monotonic() - window_s > GUARD_WINDOW_S:
                    window_s, new_before, old_before = time.monotonic(), new, old
                self._renew()
                time.sleep(rollout_files.LOOK_S)
        finally:
            looks.close()

    def _finish(self) -> Any:
        rollout = self._rollout
        if rollout.plan.mode == "shadow":
            stays, outcome = rollout.old, "shadowed"
        else:
            stays, outcome = rollout.new, "served"
        self._save(phase="finishing")
        self._report(f"replicas of version {stays.version} alone take over")
        package = verify(Path(stays.package_path), self._settings, digest=stays.digest)
        application.apply(self._settings, self._builders, stays, package)
        application.wait_until_running(self._settings, stays.model, meanwhile=self._renew)
        application.wait_until_answering(stays, own_token(self._settings))
        deployments.record(self._settings, stays)
        return outcome

    def _counts(self) -> tuple[ArmCounts, ArmCounts]:
        told = rollout_files.reports(self._settings, self._rollout)
        return ArmCounts.total(r.new for r in told), ArmCounts.total(r.old for r in told)

    def _renew(self) -> None:
        """Say now and then that somebody watches."""
        if time.monotonic() - self._renewed_s > _RENEW_S:
            self._save()

    def _save(self, **changes: Any) -> None:
        self._rollout = self._rollout.model_copy(update={**changes, "watched_at": now()})
        rollout_files.write(self._settings, self._rollout)
        self._renewed_s = time.monotonic()

    def _end(self, outcome: str, reason: str) -> None:
        self._save(phase="over", share_percent=0.0, outcome=outcome, reason=reason)
        rollout_files.clear(self._settings, self._rollout)
        self._tell(f"rollout.{outcome}", {"reason": reason})

    def _tell(self, action: str, facts: dict[str, str | float]) -> None:
        plan = self._rollout.plan
        about = {"rollout": self._rollout.id, "from": plan.from_version, **facts}
        audit.append(self._settings, action, f"{plan.model} {plan.to_version}", about)


def trial_arguments(rollout: Rollout) -> dict[str, Any]:
    """Give what a replica must know of the second version; see `trial.TrialArguments`."""
    plan = rollout.plan
    return {
        "rollout_id": rollout.id,
        "is_shadow": plan.mode == "shadow",
        "split_by": plan.split_by,
        "answer_within_ms": plan.answer_within_ms,
        "version": rollout.new.version,
        "digest": rollout.new.digest,
        "package_path": rollout.new.package_path,
    }
