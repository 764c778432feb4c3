"""Two pairs of eyes: where the gate asks for it, a champion needs somebody else's approval.

Who somebody is, the settings say; it is taken at its word.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from penstock import audit
from penstock.errors import GateRefusedError
from penstock.registry.lock import model_lock
from penstock.registry.package import verify
from penstock.registry.versions import Approval, ModelRegistry
from penstock.roles import check_may
from penstock.settings import Settings

_LOCK_WAIT_S = 30.0


def approve(settings: Settings, name: str, version: int, *, reason: str) -> Approval:
    """Note that whoever acts has looked at the version and agrees to it as champion.

    Raises:
        NotFoundError: no such model or version.
        IntegrityError: the package is not what was registered.
        BusyError: the model is being changed.
        ForbiddenError: the role of whoever acts does not have it.
    """
    check_may(settings, "approve")
    registry = ModelRegistry(settings)
    found = registry.resolve(name, version)
    verify(Path(found.path), settings, digest=found.digest)
    made = Approval(actor=settings.acting, at=datetime.now(UTC), reason=reason, digest=found.digest)
    with model_lock(settings, name, wait_s=_LOCK_WAIT_S):
        facts = {"reason": reason, "digest": found.digest}
        audit.append(settings, "model.approve", found.label, facts)
        registry.add_approval(name, version, made)
    return made


def check_approved(
    name: str, version: int, *, digest: str, promoter: str, approvals: Iterable[Approval]
) -> None:
    """Refuse a version that nobody but its promoter has approved.

    Args:
        name: the model.
        version: its number.
        digest: of the version as it is registered; an approval is of one digest.
        promoter: who wants to make it the champion.
        approvals: all there are of the version.

    Raises:
        GateRefusedError: says whose approval is missing.
    """
    actors = sorted({each.actor for each in approvals if each.digest == digest})
    if any(actor != promoter for actor in actors):
        return
    found = f"only {promoter} has, who promotes it" if actors else "nobody has yet"
    raise GateRefusedError(
        f"version {version} of {name} must be approved: {found}",
        allowed=f"anybody but {promoter}",
        next_step=f"have somebody else run `penstock models approve {name} {version}`",
    )
