"""What keeps one caller, or one broken model, from costing all others: pure, told the time."""

from dataclasses import dataclass, field

BREAK_AFTER = 20
"""So many requests in a row without a finite score, and the model is taken for broken."""
TRY_AGAIN_S = 1.0
"""How long a broken model is left alone before one request tries it."""


@dataclass
class RateLimit:
    """A token bucket: `per_s` requests a second, and as many at once after a second of silence.

    Source: the leaky bucket as a meter, ITU-T I.371, annex A.
    """

    per_s: float
    _tokens: float = field(init=False)
    _at_s: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Begin with a full bucket."""
        self._tokens = self._size

    @property
    def _size(self) -> float:
        return max(self.per_s, 1.0)

    def wait_s(self, now_s: float) -> float:
        """Let a request in (0), or say after how many seconds the next one is.

        Args:
            now_s: monotonic.
        """
        since_s = 0.0 if self._at_s is None else now_s - self._at_s
        self._at_s = now_s
        self._tokens = min(self._size, self._tokens + since_s * self.per_s)
        if self._tokens >= 1.0:
            self._tokens -= 1.0
            return 0.0
        return (1.0 - self._tokens) / self.per_s


@dataclass
class Breaker:
    """Stops asking a model that has no finite score for anybody, and tries it now and then.

    A row can drive a model beyond finite numbers, and that is its caller's to mend (422). A model
    that has no number for anybody is broken, and who asks it is told so at once (503).
    """

    break_after: int = BREAK_AFTER
    try_again_s: float = TRY_AGAIN_S
    _num_failed: int = field(default=0, init=False)
    _next_try_s: float = field(default=0.0, init=False)

    @property
    def is_open(self) -> bool:
        """Whether the model is taken for broken."""
        return self._num_failed >= self.break_after

    def lets_in(self, now_s: float) -> bool:
        """Say whether a request may ask the model; while it is broken one a second may.

        Args:
            now_s: monotonic.
        """
        if not self.is_open:
            return True
        if now_s < self._next_try_s:
            return False
        self._next_try_s = now_s + self.try_again_s
        return True

    def count(self, *, has_score: bool, now_s: float) -> None:
        """Take down how a request ended; one score, and all is well again."""
        if has_score:
            self._num_failed = 0
            return
        self._num_failed += 1
        if self._num_failed == self.break_after:
            self._next_try_s = now_s + self.try_again_s
