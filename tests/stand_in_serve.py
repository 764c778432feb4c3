"""Stands for Serve in the tests of rollouts, which are about their order and their files."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from deployed import deployment
from penstock import audit
from penstock.registry.versions import ModelVersion
from penstock.serving import (
    deployments,
    rollout_files,
)
from penstock.serving.arm_counts import ArmCounts
from penstock.serving.deploy import deploy
from penstock.serving.deployments import Deployment
from penstock.serving.rolling import plan_rollout, roll_out
from penstock.serving.rollout import RolloutPlan
from penstock.serving.rollout_files import Rollout
from penstock.serving.trial import TrialArguments
from penstock.serving.way_back import roll_back
from penstock.settings import Settings

NOTHING, ONE_ANSWER = ArmCounts(), ArmCounts(num_answers=1)
BOTH, ONE, TWO = "apply 1 with 2", "apply 1", "apply 2"


@dataclass
class Serve:
    """Stands for Serve and its one replica, which counts more whenever somebody looks."""

    settings: Settings
    versions: list[ModelVersion]
    applications: dict[str, dict[str, str]] = field(default_factory=lambda: {"spills": {}})
    calls: list[str] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    """What the file gave the new version, at every call and at every look."""
    fails: dict[str, BaseException] = field(default_factory=dict)
    trial: TrialArguments | None = None
    each_look: ArmCounts = ONE_ANSWER
    counted: ArmCounts = NOTHING
    on_look: Callable[[], object] = lambda: None

    def apply(
        self,
        _settings: Settings,
        _builders: None,
        wanted: Deployment,
        _package: object,
        *,
        trial: dict[str, Any] | None = None,
    ) -> None:
        call = f"apply {wanted.version}" + (f" with {trial['version']}" if trial else "")
        self.calls.append(call)
        self._see()
        if call in self.fails:
            raise self.fails[call]
        if trial is not None:
            self.trial = TrialArguments.model_validate(trial)
            self._report()

    def look(self, *_: object, **__: object) -> None:
        self._see()
        self.counted = self.counted.plus(self.each_look)
        self._report()
        self.on_look()

    def _see(self) -> None:
        found = self.rollout
        self.shares.append(found.share_at(rollout_files.now()) if found else 0.0)

    def _report(self) -> None:
        assert self.trial is not None
        told = rollout_files.Report(replica="a", new=self.counted, old=NOTHING)
        rollout_files.report(self.settings, "spills", self.trial.rollout_id, told)

    @property
    def rollout(self) -> Rollout | None:
        return rollout_files.find(self.settings, "spills")

    @property
    def stands(self) -> Deployment | None:
        return deployments.find_deployment(self.settings, "spills")

    @property
    def told(self) -> list[str]:
        audit.verify(self.settings)
        return [record.action for record in audit.records(self.settings)]

    def plan(self, number: int = 2, **choices: Any) -> RolloutPlan:
        choices = {"shares_percent": (5, 100), "hold_s": 0.0, **choices}
        return plan_rollout(self.settings, self.versions[number - 1], **choices)

    def roll_out(self, plan: RolloutPlan | None = None, **choices: Any) -> Rollout:
        return roll_out(
            self.settings,
            self.versions[1],
            plan or self.plan(**choices),
            report=lambda _: None,
            progress=self.look,
        )

    def deploy(self, number: int) -> Deployment:
        return deploy(self.settings, self.versions[number - 1], report=lambda _: None)

    def roll_back(self) -> Deployment:
        return roll_back(self.settings, "spills", reason="alerts", report=lambda _: None)

    def leave(self, plan: RolloutPlan, **changes: Any) -> Rollout:
        """Leave the rollout that a killed process leaves."""
        one, two = map(deployment, self.versions[:2])
        left = Rollout(
            id="left",
            plan=plan,
            old=one,
            new=two.model_copy(update={"earlier": (1,)}),
            phase="shifting",
            stage_started_at=rollout_files.now(),
            watched_at=rollout_files.now(),
        ).model_copy(update=changes)
        rollout_files.begin(self.settings, left)
        rollout_files.write(self.settings, left)
        return left
