"""What a search may spend: trials, time, money; whichever ends first ends it."""

from pydantic import Field

from penstock.durations import as_duration
from penstock.records import Record


class Budget(Record):
    """Limits of one search; None: that one is not limited."""

    num_trials: int | None = Field(default=None, ge=1)
    time_s: float | None = Field(default=None, gt=0)
    """Of the search itself, over all attempts at it; the final training comes on top."""
    money: float | None = Field(default=None, gt=0)
    """In the settings' currency, of the CPU seconds that trials hold."""

    def is_full(self, num_trials: int) -> bool:
        """Say whether no further trial may begin."""
        return self.num_trials is not None and num_trials >= self.num_trials

    def spent(self, *, time_s: float, money: float) -> str | None:
        """Say which limit is reached, or None: the search may go on."""
        if self.time_s is not None and time_s >= self.time_s:
            return f"the time of {as_duration(self.time_s)} is over"
        if self.money is not None and money >= self.money:
            return f"the money of {self.money:g} is spent"
        return None

    def left_s(self, time_s: float) -> float | None:
        """Give the seconds that are left of the time; None: it is not limited."""
        return None if self.time_s is None else max(self.time_s - time_s, 0.0)
