"""What comes of a try to score a chunk of an async request: pure, told what was answered."""

from dataclasses import dataclass

MAX_ATTEMPTS = 5
"""So many tries of one chunk may end in a fault of the server, its death among them."""
_BACKOFF_S = 1.0
_MAX_WAIT_S = 30.0
_NOT_SERVED_WAIT_S = 5.0


@dataclass(frozen=True)
class Keep:
    """The answer is kept, and the next chunk comes."""


@dataclass(frozen=True)
class Wait:
    """The same chunk is tried again after `wait_s` seconds."""

    wait_s: float
    is_counted: bool
    """Whether the try counts: one that the server refused for now does not."""
    reason: str


@dataclass(frozen=True)
class BeginAgain:
    """All chunks are scored anew, by whichever version answers."""

    reason: str


@dataclass(frozen=True)
class Fail:
    """The task has failed."""

    code: str
    reason: str


Outcome = Keep | Wait | BeginAgain | Fail


def decide(
    status: int,
    code: str = "",
    message: str = "",
    *,
    retry_after_s: float = 1.0,
    is_insisted: bool,
    num_attempts: int,
) -> Outcome:
    """Say what comes of an answer.

    Args:
        status: of the answer to the chunk.
        code: of the refusal.
        message: of the refusal.
        retry_after_s: what the refusal says.
        is_insisted: whether the caller named the version.
        num_attempts: how often this chunk was tried, this time among them.
    """
    told = f"{message} ({status} {code})"
    if status == 200:
        return Keep()
    if status == 404:
        if is_insisted:
            # A way back, or another deploy, may bring it again.
            return Wait(_NOT_SERVED_WAIT_S, False, told)
        return BeginAgain(f"the version that had begun is gone: {told}")
    if status == 429 or (status == 503 and code != "internal"):
        return Wait(min(max(retry_after_s, 1.0), _MAX_WAIT_S), False, told)
    if status >= 500:
        return after_fault(told, num_attempts=num_attempts)
    return Fail(code, message)


def after_fault(told: str, *, num_attempts: int) -> Outcome:
    """Say what comes of a try that ended in a fault of the server, for the how many-th time."""
    if num_attempts >= MAX_ATTEMPTS:
        return Fail("gave_up", f"no answer after {MAX_ATTEMPTS} tries: {told}")
    return Wait(min(_BACKOFF_S * 2.0 ** (num_attempts - 1), _MAX_WAIT_S), True, told)
