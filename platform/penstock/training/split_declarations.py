"""How a use case declares which examples train and which test: by time, one stretch or rolling."""

from datetime import UTC, datetime, timedelta
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import field_validator, model_validator

from penstock.records import Declaration


class Zoned(Declaration):
    """Whatever names moments of a calendar."""

    zone: str = "UTC"

    @field_validator("zone")
    @classmethod
    def _check_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{zone!r} is no time zone; an IANA name is: Europe/Paris") from None
        return zone

    def _utc(self, moment: datetime) -> datetime:
        aware = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(self.zone))
        return aware.astimezone(UTC)


class _Split(Zoned):
    train_start: datetime
    test_start: datetime
    test_end: datetime
    label_delay: timedelta = timedelta(0)
    """How long after its event a label becomes known."""
    drop_known_positive_groups: str | None = None
    """A column: out of each test day go the rows of its groups that were positive since
    `train_start` and are already known to be, at the start of that day, by the label's delay."""

    @model_validator(mode="after")
    def _check_test(self) -> Self:
        if not self.test_start_utc < self.test_end_utc:
            raise ValueError("test_start must come before test_end")
        if self.label_delay < timedelta(0):
            raise ValueError("label_delay must not be negative")
        return self

    @property
    def train_start_utc(self) -> datetime:
        """The first moment of training."""
        return self._utc(self.train_start)

    @property
    def test_start_utc(self) -> datetime:
        """The first moment of the test."""
        return self._utc(self.test_start)

    @property
    def test_end_utc(self) -> datetime:
        """The moment at which the test ends, itself left out."""
        return self._utc(self.test_end)


class TimeSplit(_Split):
    """Train on one stretch of time, test on a later one, with the label's delay between.

    Every stretch is half open: [start, end). A naive moment is read in `zone`, and days are
    counted in it.
    """

    train_end: datetime

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.train_start_utc < self.train_end_utc:
            raise ValueError("train_start must come before train_end")
        if self.test_start_utc < self.train_end_utc + self.label_delay:
            raise ValueError(
                f"test_start is {self.test_start}, but the last training label is known only "
                f"{self.label_delay} after train_end {self.train_end}: the split would leak"
            )
        return self

    @property
    def train_end_utc(self) -> datetime:
        """The moment at which training data ends, itself left out."""
        return self._utc(self.train_end)

    def folds(self) -> "tuple[TimeSplit, ...]":
        """Itself, the only one."""
        return (self,)

    def moved(self, by: timedelta) -> Self:
        """Give the same split at another time; below zero: earlier."""
        return self.model_copy(
            update={
                "train_start": self.train_start_utc + by,
                "train_end": self.train_end_utc + by,
                "test_start": self.test_start_utc + by,
                "test_end": self.test_end_utc + by,
            }
        )


class RollingTimeSplit(_Split):
    """Train on all that is known by then, test on the next stretch, and so on to the end.

    The test is cut into stretches, at each month's first day in `zone` or every so often. Each is
    scored by a fit on everything from `train_start` whose label is known when it begins; the
    metrics are those of all test rows together. The last fit becomes the model version.
    """

    refit_every: timedelta | Literal["month"] = "month"

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if isinstance(self.refit_every, timedelta) and self.refit_every <= timedelta(0):
            raise ValueError("refit_every must be above zero")
        if not self.train_start_utc < self.test_start_utc - self.label_delay:
            raise ValueError(
                f"no label from train_start {self.train_start} on is known at test_start "
                f"{self.test_start}, with a label_delay of {self.label_delay}"
            )
        return self

    def folds(self) -> tuple[TimeSplit, ...]:
        """One split for each stretch of the test, in order of time."""
        starts = [self.test_start_utc]
        while (following := self._next(starts[-1])) < self.test_end_utc:
            starts.append(following)
        shared = self.model_dump(exclude={"refit_every", "train_start", "test_start", "test_end"})
        return tuple(
            TimeSplit(
                train_start=self.train_start_utc,
                train_end=start - self.label_delay,
                test_start=start,
                test_end=end,
                **shared,
            )
            for start, end in zip(starts, [*starts[1:], self.test_end_utc], strict=True)
        )

    def _next(self, start: datetime) -> datetime:
        if isinstance(self.refit_every, timedelta):
            return start + self.refit_every
        local = start.astimezone(ZoneInfo(self.zone))
        year, month = (local.year + local.month // 12, local.month % 12 + 1)
        return self._utc(datetime(year, month, 1))


Split = TimeSplit | RollingTimeSplit
