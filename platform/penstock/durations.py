"""Lengths of time as people write them: 90s, 20m, 1h30m, 14d."""

import re

from penstock.errors import UserError

_PARTS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
_SECONDS = (86_400, 3600, 60, 1)


def parse_duration(text: str) -> float:
    """Read `90s`, `20m`, `1h30m` or `14d` as seconds.

    Raises:
        UserError: it is no duration, or none that is above zero.
    """
    found = _PARTS.fullmatch(text.strip())
    numbers = [int(part or 0) for part in found.groups()] if found else [0]
    seconds = sum(n * unit for n, unit in zip(numbers, _SECONDS, strict=False))
    if not seconds:
        raise UserError(f"{text!r} is no duration", allowed="such as 90s, 20m, 1h30m or 14d")
    return float(seconds)


def as_duration(seconds: float) -> str:
    """Write seconds as people do: `1h30m`, `20m`, `90s`; from two days on `14d`."""
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.3g}s" if seconds < 10 else f"{whole}s"
    days, rest = divmod(whole, 86_400) if whole >= 2 * 86_400 else (0, whole)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (left, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number)
