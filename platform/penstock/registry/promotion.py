"""Moves the champion: gate, compare-and-set, journal; and back again."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from penstock.errors import (
    BusyError,
    DeclarationError,
    GateRefusedError,
    IntegrityError,
    NotFoundError,
    UserError,
)
from penstock.records import Record
from penstock.registry.approval import check_approved
from penstock.registry.gate import GateDecision, decide
from penstock.registry.lock import model_lock
from penstock.registry.package import VerifiedPackage, verify
from penstock.registry.versions import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS_CHAMPION,
    ModelRegistry,
    ModelVersion,
    Move,
)
from penstock.roles import check_may
from penstock.settings import Settings
from penstock.training.declarations import load_model

# MLflow's column for a registered model's tag holds 5,000 characters, the whole move among them.
_MAX_REASON_CHARS = 2000


class Comparison(Record):
    """A challenger beside the champion, and what the gate would say."""

    model: str
    champion: ModelVersion | None
    challenger: ModelVersion
    same_training_set: bool
    """False: the metrics stand on different data, so a small gain says little."""
    decision: GateDecision


def champions(moves: Sequence[Move], now: int | None) -> list[int]:
    """The champions that a rollback can walk back to, oldest first, the present one last.

    A champion that somebody set in MLflow itself has no move; it shows where the next move starts
    from, or in `now`, and takes its place in the line.
    """
    line: list[int] = []
    for move in moves:
        if move.kind == "rollback":
            while line and line[-1] != move.to_version:
                line.pop()
        else:
            if move.from_version is not None and line[-1:] != [move.from_version]:
                line.append(move.from_version)
            line.append(move.to_version)
    if now is not None and line[-1:] != [now]:
        line.append(now)
    return line


def compare(settings: Settings, name: str, version: int | None = None) -> Comparison:
    """Hold a version (None: the challenger) against the champion by the declared gate.

    Both packages are verified, and the metrics are the signed ones.

    Raises:
        NotFoundError: no such model or version, or it has no challenger.
        IntegrityError: one of the packages is not what was registered.
    """
    registry = ModelRegistry(settings)
    return _compare(registry, name, registry.resolve(name, version or CHALLENGER).version)


def promote(
    settings: Settings,
    name: str,
    version: int,
    *,
    expected: int | None,
    force_reason: str | None = None,
    downgrade: bool = False,
) -> Move:
    """Make a version the champion, if the gate lets it and the champion is still the expected one.

    Args:
        settings: whose registry.
        name: the model.
        version: the version to promote.
        expected: the champion that the caller decided upon; None: there was none.
        force_reason: promotes against the gate, and away from a damaged champion, with this
            reason in the journal.
        downgrade: the version may be an older one than the champion.

    Raises:
        UserError: it is an older one, and nobody said that it may be.
        GateRefusedError: the gate says no, or an approval is missing; the champion stays.
        BusyError: another move is under way, or the champion is no longer the expected one.
        IntegrityError: the package is not what was registered.
        ForbiddenError: the role of whoever acts does not have it.
    """
    check_may(settings, "promote")
    registry = ModelRegistry(settings)
    wanted = registry.resolve(name, version)
    with model_lock(settings, name):
        registry.finish_moves(name)
        aliases = registry.aliases(name)
        now = aliases.get(CHAMPION)
        _check_expected(name, now, expected)
        if now == version:
            raise GateRefusedError(f"version {version} of {name} is the champion already")
        if now is not None and version < now and not downgrade:
            raise UserError(
                f"version {version} of {name} is older than the champion, version {now}",
                next_step="`penstock models rollback` goes back to an earlier champion; say "
                "--downgrade if this one is meant",
            )
        decision = _decide(registry, name, version, is_forced=force_reason is not None)
        if not decision.passed and force_reason is None:
            raise GateRefusedError(
                f"version {version} of {name} is not promoted: {decision.reason}",
                next_step=f"`penstock models compare {name} {version}` shows the evidence",
            )
        # Forced or not: reasons to go against the gate need a second pair of eyes most.
        if load_model(settings, wanted.facts.use_case).gate.needs_approval:
            check_approved(
                name,
                version,
                digest=wanted.digest,
                promoter=settings.acting,
                approvals=registry.approvals(name, version),
            )
        move = Move(
            number=len(registry.moves(name)) + 1,
            kind="promote",
            from_version=now,
            to_version=version,
            aliases={
                CHAMPION: version,
                PREVIOUS_CHAMPION: now,
                **({CHALLENGER: None} if aliases.get(CHALLENGER) == version else {}),
            },
            reason=(decision.reason if force_reason is None else force_reason)[:_MAX_REASON_CHARS],
            forced=not decision.passed,
            at=datetime.now(UTC),
        )
        registry.move(name, move)
    return move


def rollback(settings: Settings, name: str, *, expected: int | None, reason: str) -> Move:
    """Make the champion before this one the champion again; further calls walk further back.

    Args:
        settings: whose registry.
        name: the model.
        expected: the champion to roll back from: of two callers at once only one goes back.
        reason: for the journal.

    Raises:
        NotFoundError: there was no champion before.
        BusyError: another move is under way, or the champion is no longer the expected one.
        IntegrityError: the earlier champion's package is not what was registered.
        ForbiddenError: the role of whoever acts does not have it.
    """
    check_may(settings, "promote")
    registry = ModelRegistry(settings)
    registry.aliases(name)
    with model_lock(settings, name):
        registry.finish_moves(name)
        now = registry.aliases(name).get(CHAMPION)
        _check_expected(name, now, expected)
        moves = registry.moves(name)
        line = champions(moves, now)
        if now is None or len(line) < 2:
            raise NotFoundError(
                f"the model {name} has had no champion before {_shown(now)}",
                next_step=f"`penstock models promote {name}` makes another version the champion",
            )
        target = line[-2]
        _verified(registry, registry.resolve(name, target))
        move = Move(
            number=len(moves) + 1,
            kind="rollback",
            from_version=now,
            to_version=target,
            aliases={CHAMPION: target, PREVIOUS_CHAMPION: line[-3] if len(line) > 2 else None},
            reason=reason[:_MAX_REASON_CHARS],
            at=datetime.now(UTC),
        )
        registry.move(name, move)
    return move


def _check_expected(name: str, now: int | None, expected: int | None) -> None:
    if now != expected:
        raise BusyError(
            f"the champion of {name} is {_shown(now)}, no longer {_shown(expected)}",
            next_step="look at the new champion, then decide again",
        )


def _decide(registry: ModelRegistry, name: str, version: int, *, is_forced: bool) -> GateDecision:
    try:
        return _compare(registry, name, version).decision
    except IntegrityError as error:
        if not is_forced:
            raise
        # A damaged champion is a reason to leave it; what takes its place must be whole.
        _verified(registry, registry.resolve(name, version))
        return GateDecision(passed=False, reason=error.found, evidence=())


def _compare(registry: ModelRegistry, name: str, version: int) -> Comparison:
    challenger = registry.resolve(name, version)
    number = registry.aliases(name).get(CHAMPION)
    champion = None if number is None else registry.resolve(name, number)
    package = _verified(registry, challenger)
    declared = load_model(registry.settings, package.signature.use_case)
    if declared.name != name:
        raise DeclarationError(
            f"the use case {package.signature.use_case} declares the model {declared.name}, "
            f"not {name}",
            next_step="its gate is needed: declare the model under its former name",
        )
    decision = decide(
        None if champion is None else _metrics(_verified(registry, champion)),
        _metrics(package),
        declared.gate,
        higher_is_better=declared.higher_is_better(declared.gate.metric),
        leak_alarm=declared.leak_alarm,
    )
    return Comparison(
        model=name,
        champion=champion,
        challenger=challenger,
        same_training_set=champion is None
        or champion.facts.training_set_id == challenger.facts.training_set_id,
        decision=decision,
    )


def _verified(registry: ModelRegistry, version: ModelVersion) -> VerifiedPackage:
    return verify(Path(version.path), registry.settings, digest=version.digest)


def _metrics(package: VerifiedPackage) -> dict[str, float]:
    return {name: float(value) for name, value in package.training.get("metrics", {}).items()}


def _shown(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
