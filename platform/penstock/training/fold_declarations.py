"""How a use case declares the folds on which `penstock train --folds` measures a model.

Every kind says by `folds()` what each fold is; which rows those are stands in fold_rows.py.
"""

from datetime import datetime, timedelta
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from penstock.records import Record
from penstock.training.split_declarations import (
    RollingTimeSplit,
    Split,
    TimeSplit,
    Zoned,
)

_NUM_DERIVED_FOLDS = 4
_NOTHING = timedelta(0)


class PrequentialFolds(Record):
    """A split by time, again and again, each time a step later: what refitting would have met.

    Source: Gama, Sebastião, Rodrigues, "On evaluating stream learning algorithms", 2013; for
    labels that are late: the Fraud Detection Handbook's prequential validation.
    """

    kind: Literal["prequential"] = "prequential"
    remark: ClassVar[str | None] = None
    first: TimeSplit
    """The earliest fold."""
    num_folds: int = Field(ge=2)
    step: timedelta | None = None
    """From one fold to the next; None: as long as the test."""

    @model_validator(mode="after")
    def _check_step(self) -> Self:
        if self.step is not None and self.step < _test_length(self.first):
            raise ValueError(
                f"step is {self.step}, shorter than the test of {_test_length(self.first)}: rows "
                "would be tested twice"
            )
        return self

    def folds(self) -> tuple[TimeSplit, ...]:
        """Give the folds in order of time."""
        step = self.step or _test_length(self.first)
        return tuple(self.first.moved(number * step) for number in range(self.num_folds))


class Stretch(Zoned):
    """A stretch of time: [start, end). A naive moment is read in `zone`, days are counted in it."""

    start: datetime
    end: datetime

    @model_validator(mode="after")
    def _check_stretch(self) -> Self:
        if not self.start_utc < self.end_utc:
            raise ValueError("start must come before end")
        return self

    @property
    def start_utc(self) -> datetime:
        """The first moment."""
        return self._utc(self.start)

    @property
    def end_utc(self) -> datetime:
        """The moment at which it ends, itself left out."""
        return self._utc(self.end)


class _Distances(Record):
    label_delay: timedelta = Field(default=_NOTHING, ge=_NOTHING)
    """How long after its event a label becomes known: a row this close to a test has a label of the
    same time as the test's."""
    feature_horizon: timedelta = Field(default=_NOTHING, ge=_NOTHING)
    """How far back features look: a row this soon after a test is described by the test's rows."""
    embargo: timedelta = Field(default=_NOTHING, ge=_NOTHING)
    """A further distance after each test, for what lingers beyond both."""

    @property
    def before(self) -> timedelta:
        """Between the last training row before a test and the test."""
        return self.label_delay

    @property
    def after(self) -> timedelta:
        """Between a test and the first training row after it."""
        return max(self.label_delay, self.feature_horizon) + self.embargo


class PurgedFold(Stretch, _Distances):
    """One stretch tests; all else trains but for what is too close to it."""

    test_start: datetime
    test_end: datetime


class PurgedFolds(Stretch, _Distances):
    """Equal stretches of time; each is tested by a fit on all others, purged and embargoed.

    A row before the test trains where its label is known when the test begins; one after it where
    neither its label nor its features overlap the test, and the embargo is over. Source: López de
    Prado, "Advances in Financial Machine Learning", 2018, chapter 7.
    """

    kind: Literal["purged"] = "purged"
    remark: ClassVar[str | None] = (
        "rows after a test train too, at a distance: time is respected less than by prequential "
        "folds"
    )
    num_folds: int = Field(ge=2)

    @model_validator(mode="after")
    def _check_trains(self) -> Self:
        for fold in self.folds():
            ends = fold.test_start - fold.before <= self.start_utc
            if ends and fold.test_end + fold.after >= self.end_utc:
                raise ValueError(
                    f"nothing is left to train the fold that tests from {fold.test_start} up to "
                    f"{fold.test_end}: label_delay, feature_horizon and embargo take all of it"
                )
        return self

    def folds(self) -> tuple[PurgedFold, ...]:
        """Give the folds in order of time."""
        length = self.end_utc - self.start_utc
        cuts = [self.start_utc + length * n / self.num_folds for n in range(self.num_folds)]
        shared = self.model_dump(exclude={"kind", "num_folds"})
        return tuple(
            PurgedFold(test_start=start, test_end=end, **shared)
            for start, end in zip(cuts, [*cuts[1:], self.end_utc], strict=True)
        )


class _Part(Record):
    part: int = Field(ge=0)
    """This fold's, from 0."""
    num_parts: int = Field(ge=2)
    seed: int


class GroupFold(_Part):
    """One part of the groups tests, the others train."""

    group: str
    within: TimeSplit | Stretch


class GroupFolds(Stretch):
    """The groups dealt into parts: each is tested by a fit that has seen none of its rows."""

    kind: Literal["group"] = "group"
    remark: ClassVar[str | None] = (
        "time is not respected: rows are tested by fits on later rows of other groups"
    )
    group: str
    """The column: a customer, a patient, a site."""
    num_folds: int = Field(ge=2)
    seed: int = 0

    def folds(self) -> tuple[GroupFold, ...]:
        """Give one fold for each part of the groups."""
        within = Stretch(start=self.start, end=self.end, zone=self.zone)
        return _dealt(self.group, self.num_folds, self.seed, within)


class GroupTimeFolds(Record):
    """Groups and time together: each part of the groups is tested, later, by a fit on the others.

    Says how a model does on groups that it meets for the first time.
    """

    kind: Literal["group_time"] = "group_time"
    remark: ClassVar[str | None] = None
    group: str
    num_folds: int = Field(ge=2)
    """Parts of the groups, for each fold of time."""
    by_time: TimeSplit | RollingTimeSplit | PrequentialFolds
    seed: int = 0

    def folds(self) -> tuple[GroupFold, ...]:
        """Give one fold for each part of the groups in each fold of time."""
        return tuple(
            fold
            for within in self.by_time.folds()
            for fold in _dealt(self.group, self.num_folds, self.seed, within)
        )


class RandomFold(Stretch, _Part):
    """One part of the rows tests, the others train."""


class RandomFolds(Stretch):
    """Rows dealt at random, for who insists: where labels or features span time, this flatters."""

    kind: Literal["random"] = "random"
    remark: ClassVar[str | None] = (
        "time is not respected: rows are tested by fits on later ones, which serving never has"
    )
    num_folds: int = Field(ge=2)
    seed: int = 0

    def folds(self) -> tuple[RandomFold, ...]:
        """Give one fold for each part of the rows."""
        shared = self.model_dump(exclude={"kind", "num_folds"})
        return tuple(
            RandomFold(part=part, num_parts=self.num_folds, **shared)
            for part in range(self.num_folds)
        )


Fold = TimeSplit | PurgedFold | GroupFold | RandomFold
Validation = (
    TimeSplit
    | RollingTimeSplit
    | PrequentialFolds
    | PurgedFolds
    | GroupFolds
    | GroupTimeFolds
    | RandomFolds
)


def derived_folds(split: Split) -> RollingTimeSplit | PrequentialFolds:
    """Give the folds of a model that declares none.

    A rolling split has folds of its own; one by time is moved back by its test, so that the last
    fold is the split itself.
    """
    if isinstance(split, RollingTimeSplit):
        return split
    back = (_NUM_DERIVED_FOLDS - 1) * _test_length(split)
    return PrequentialFolds(first=split.moved(-back), num_folds=_NUM_DERIVED_FOLDS)


def remark_on(validation: Validation) -> str | None:
    """Say where the folds look at the future, or None where they do not."""
    return None if isinstance(validation, TimeSplit | RollingTimeSplit) else validation.remark


def label_delay_of(validation: Validation) -> timedelta | None:
    """Give the delay that the folds keep, or None where they keep none."""
    match validation:
        case TimeSplit() | RollingTimeSplit() | PurgedFolds():
            return validation.label_delay
        case PrequentialFolds():
            return validation.first.label_delay
        case GroupTimeFolds():
            return label_delay_of(validation.by_time)
        case GroupFolds() | RandomFolds():
            return None


def span_of(fold: Fold | Stretch) -> tuple[datetime, datetime]:
    """Give the stretch [start, end) of all rows that the fold looks at."""
    match fold:
        case TimeSplit():
            return fold.train_start_utc, fold.test_end_utc
        case GroupFold():
            return span_of(fold.within)
        case Stretch():
            return fold.start_utc, fold.end_utc


def delay_within(fold: Fold | Stretch) -> timedelta:
    """Give the label's delay that lies between training and test rows of the fold."""
    match fold:
        case TimeSplit() | PurgedFold():
            return fold.label_delay
        case GroupFold():
            return delay_within(fold.within)
        case _:
            return _NOTHING


def in_words(fold: Fold | Stretch) -> str:
    """Say which rows train and which test."""
    match fold:
        case TimeSplit():
            trains = f"{_day(fold.train_start_utc)} up to {_day(fold.train_end_utc)}"
            return f"{trains}, tested {_day(fold.test_start_utc)} up to {_day(fold.test_end_utc)}"
        case PurgedFold():
            tests = f"{_day(fold.test_start)} up to {_day(fold.test_end)}"
            return f"all around the test but what is too close, tested {tests}"
        case GroupFold():
            part = f"part {fold.part + 1} of {fold.num_parts} of {fold.group}"
            return f"the other parts' rows in {in_words(fold.within)}, tested {part}"
        case RandomFold():
            return f"the other rows, tested part {fold.part + 1} of {fold.num_parts} at random"
        case Stretch():
            return f"{_day(fold.start_utc)} up to {_day(fold.end_utc)}"


def _day(moment: datetime) -> str:
    is_midnight = moment == moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return f"{moment:%Y-%m-%d}" if is_midnight else f"{moment:%Y-%m-%d %H:%M}"


def groups_of(validation: Validation) -> tuple[str, ...]:
    """Give the columns of groups that the folds look at."""
    match validation:
        case TimeSplit() | RollingTimeSplit():
            dropped = validation.drop_known_positive_groups
            return (dropped,) if dropped else ()
        case PrequentialFolds():
            return groups_of(validation.first)
        case GroupTimeFolds():
            return (validation.group, *groups_of(validation.by_time))
        case GroupFolds():
            return (validation.group,)
        case PurgedFolds() | RandomFolds():
            return ()


def _dealt(
    group: str, num_parts: int, seed: int, within: TimeSplit | Stretch
) -> tuple[GroupFold, ...]:
    return tuple(
        GroupFold(group=group, part=part, num_parts=num_parts, seed=seed, within=within)
        for part in range(num_parts)
    )


def _test_length(split: TimeSplit) -> timedelta:
    return split.test_end_utc - split.test_start_utc
