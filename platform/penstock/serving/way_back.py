"""The way back: out of a rollout that is under way, else to the version that served before."""

import time
from collections.abc import Callable

from penstock import audit
from penstock.errors import BusyError, NotFoundError
from penstock.locks import is_held
from penstock.registry.versions import resolve
from penstock.roles import check_may
from penstock.serving import deployments, rollout_files
from penstock.serving.deploy import deploy, lock_path
from penstock.serving.deployments import Deployment
from penstock.settings import Settings

_WAIT_FOR_BACK_S = 240.0

Report = Callable[[str], None]


def roll_back(settings: Settings, model: str, *, reason: str, report: Report) -> Deployment:
    """Go back: out of a rollout that is under way, else to the version that served before.

    Args:
        settings: which Ray and which storage.
        model: whose deployment.
        reason: for the audit log.
        report: is told what happens.

    Raises:
        NotFoundError: nothing is served, or nothing served before.
        BusyError: a plain deploy is under way.
        ClusterError: the way back does not come up.
        ForbiddenError: the role of whoever acts does not have it.
    """
    check_may(settings, "deploy")
    if is_held(lock_path(settings, model)):
        return _ask_for_way_back(settings, model, reason, report)
    left = rollout_files.find(settings, model)
    before = deployments.find_deployment(settings, model)
    if before is None:
        raise NotFoundError(f"nothing of {model} is served", next_step="penstock deploy")
    if left is not None and not left.is_over:
        number = left.old.version
    elif before.earlier:
        number = before.earlier[-1]
    else:
        raise NotFoundError(
            f"nothing of {model} served before version {before.version}",
            next_step="`penstock deploy --version N` serves any version",
        )
    audit.append(settings, "deployment.rollback", f"{model} {number}", {"reason": reason})
    version = resolve(settings, model, number)
    return deploy(settings, version, report=report, is_way_back=number != before.version)


def _ask_for_way_back(settings: Settings, model: str, reason: str, report: Report) -> Deployment:
    """Ask the process that carries a rollout out, and wait until it is back."""
    rollout = rollout_files.find(settings, model)
    if rollout is None or rollout.is_over:
        raise BusyError(f"{model} is being deployed", next_step="try again when that ends")
    rollout_files.ask_back(settings, model, f"asked for: {reason}")
    report(f"asked the rollout of version {rollout.plan.to_version} to go back")
    deadline_s = time.monotonic() + _WAIT_FOR_BACK_S
    while is_held(lock_path(settings, model)):
        if time.monotonic() > deadline_s:
            raise BusyError(f"the rollout of {model} does not end", next_step="see its job's log")
        time.sleep(rollout_files.LOOK_S)
    over = rollout_files.find(settings, model)
    if over is None or not over.is_over:
        # Its process died with our request in hand.
        return roll_back(settings, model, reason=reason, report=report)
    if over.outcome == "served":
        raise BusyError(
            f"version {over.plan.to_version} of {model} served everything by then",
            next_step="`penstock rollback` once more goes back to the version before",
        )
    return over.old
