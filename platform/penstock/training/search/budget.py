"""What a search may spend: trials, time, money; whichever ends first ends it."""

import re

from pydantic import Field

from penstock.errors import UserError
from penstock.records import Record

_PARTS = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SECONDS = (3600, 60, 1)


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


def parse_duration(text: str) -> float:
    """Read `90s`, `20m` or `1h30m` as seconds.

    Raises:
        UserError: it is no duration, or none that is above zero.
    """
    found = _PARTS.fullmatch(text.strip())
    numbers = [int(part or 0) for part in found.groups()] if found else [0]
    seconds = sum(n * unit for n, unit in zip(numbers, _SECONDS, strict=False))
    if not seconds:
        raise UserError(f"{text!r} is no duration", allowed="such as 90s, 20m or 1h30m")
    return float(seconds)


def as_duration(seconds: float) -> str:
    """Write seconds as people do: `1h30m`, `20m`, `90s`."""
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.3g}s" if seconds < 10 else f"{whole}s"
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    parts = ((hours, "h"), (minutes, "m"), (left, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)
