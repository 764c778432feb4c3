"""Which models leave a shared replica's memory when another one needs it: pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Held:
    """A model in memory."""

    model: str
    num_bytes: int
    used_s: float
    """When it was asked last; any clock."""
    is_busy: bool
    """Somebody waits for its answer: it stays."""


@dataclass(frozen=True, kw_only=True)
class Eviction:
    """Who goes, and why."""

    models: tuple[str, ...]
    reason: str


def make_room(held: Sequence[Held], *, max_bytes: int, coming_bytes: int = 0) -> Eviction:
    """Let the least recently used go, one by one, until the rest and what comes fit.

    Where all that may go is not enough, it goes all the same, and what comes is let in: to be slow
    for a moment is better than to refuse.

    Args:
        held: what is in memory.
        max_bytes: what may be.
        coming_bytes: what the model needs that is about to be loaded.
    """
    used_bytes = coming_bytes + sum(each.num_bytes for each in held)
    needed_bytes = used_bytes
    gone = []
    for each in sorted(held, key=lambda each: each.used_s):
        if used_bytes <= max_bytes:
            break
        if not each.is_busy:
            used_bytes -= each.num_bytes
            gone.append(each.model)
    reason = f"{_mib(needed_bytes)} of {_mib(max_bytes)} would be used"
    return Eviction(models=tuple(gone), reason=reason)


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 20):,.0f} MiB"
