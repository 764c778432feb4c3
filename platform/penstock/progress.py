"""How long work tells of its progress, without knowing who listens."""

from typing import Protocol


class Progress(Protocol):
    """Receives each step's name with how much of it is done, in `unit`; `total` None is unknown."""

    def __call__(
        self, step: str, done: int, total: int | None = None, *, unit: str = "rows"
    ) -> None:
        """Take note; must be quick, for it is called from inside the work."""


def silent(step: str, done: int, total: int | None = None, *, unit: str = "rows") -> None:
    """Listen to nothing: the default where nobody watches."""
