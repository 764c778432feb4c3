"""Which rows train and which test: the laws that each kind of folds keeps, on any rows."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import TrainingDataError
from penstock.training.declarations import (
    GroupFolds,
    GroupTimeFolds,
    PrequentialFolds,
    PurgedFolds,
    RandomFolds,
    RollingTimeSplit,
    TimeSplit,
)
from penstock.training.fold_rows import cut
from penstock.training.validation import DAY_COLUMN

START = datetime(2024, 3, 20)
NUM_DAYS = 60
HOUR = timedelta(hours=1)
STRETCH = {"start": START, "end": START + timedelta(days=NUM_DAYS), "zone": "Europe/Paris"}
LAW = settings(max_examples=30, deadline=None)
hours = st.integers(0, 24 * 10).map(lambda number: number * HOUR)


@st.composite
def frames(draw):
    """Rows at any time around the stretch, in any order, of few groups."""
    seed, num_rows = draw(st.integers(0, 2**32)), draw(st.integers(1, 200))
    random = np.random.default_rng(seed)
    minutes = random.integers(-24 * 60, (NUM_DAYS + 1) * 24 * 60, num_rows)
    return pl.DataFrame(
        {
            "row": np.arange(num_rows),
            "at": [START.replace(tzinfo=UTC) + timedelta(minutes=int(m)) for m in minutes],
            "group": random.integers(0, 12, num_rows),
            "label": (random.random(num_rows) < 0.2).astype(np.int8),
        },
        schema_overrides={"at": pl.Datetime("us", "UTC")},
    )


@st.composite
def splits(draw, **more):
    train, delay, gap, test = (draw(hours) for _ in range(4))
    start = START + draw(hours)
    test_start = start + train + HOUR + delay + gap
    return TimeSplit(
        train_start=start,
        train_end=start + train + HOUR,
        test_start=test_start,
        test_end=test_start + test + HOUR,
        label_delay=delay,
        **more,
    )


@st.composite
def by_time(draw):
    split = draw(splits())
    if draw(st.booleans()):
        step = split.test_end - split.test_start + draw(hours)
        return PrequentialFolds(first=split, num_folds=draw(st.integers(2, 3)), step=step)
    return RollingTimeSplit(
        train_start=split.train_start,
        test_start=split.test_start,
        test_end=split.test_end,
        refit_every=(split.test_end - split.test_start) / 3,
        label_delay=split.label_delay,
    )


@st.composite
def purged(draw):
    return PurgedFolds(
        **STRETCH,
        num_folds=draw(st.integers(2, 5)),
        **{
            name: draw(st.integers(0, 5 * 24)) * HOUR
            for name in ("label_delay", "feature_horizon", "embargo")
        },
    )


grouped = st.builds(
    GroupFolds,
    **{name: st.just(value) for name, value in STRETCH.items()},
    group=st.just("group"),
    num_folds=st.integers(2, 5),
    seed=st.integers(0, 9),
)
grouped_in_time = st.builds(
    GroupTimeFolds,
    group=st.just("group"),
    num_folds=st.integers(2, 3),
    by_time=by_time() | splits(),
    seed=st.integers(0, 9),
)
dealt = st.builds(
    RandomFolds,
    **{name: st.just(value) for name, value in STRETCH.items()},
    num_folds=st.integers(2, 5),
    seed=st.integers(0, 9),
)


def sides(frame, folds):
    return [cut(frame, fold, event_time="at", label="label") for fold in folds.folds()]


@LAW
@given(frame=frames(), folds=by_time() | purged() | grouped | grouped_in_time | dealt)
def test_a_row_is_tested_at_most_once_and_never_by_a_fit_that_has_seen_it(frame, folds):
    tested = [row for _, test in sides(frame, folds) for row in test["row"]]
    assert len(tested) == len(set(tested))
    for train, test in sides(frame, folds):
        assert not set(train["row"]) & set(test["row"])
        assert train["row"].is_sorted()
        assert test["row"].is_sorted()
        assert DAY_COLUMN in test.columns


@LAW
@given(frame=frames(), folds=by_time() | grouped_in_time)
def test_no_row_trains_whose_label_is_not_known_when_the_test_begins(frame, folds):
    for fold, (train, test) in zip(folds.folds(), sides(frame, folds), strict=True):
        split = getattr(fold, "within", fold)
        known = train["at"] + split.label_delay
        assert (known <= split.test_start_utc).all()
        assert (test["at"] >= split.test_start_utc).all()


@LAW
@given(frame=frames(), folds=purged())
def test_purge_and_embargo_keep_every_training_row_at_its_distance(frame, folds):
    inside = frame.filter(pl.col("at").is_between(folds.start_utc, folds.end_utc, closed="left"))
    reach = max(folds.label_delay, folds.feature_horizon) + folds.embargo
    for fold, (train, test) in zip(folds.folds(), sides(frame, folds), strict=True):
        before = train.filter(pl.col("at") < fold.test_start)["at"]
        after = train.filter(pl.col("at") >= fold.test_start)["at"]
        assert (before + folds.label_delay <= fold.test_start).all()
        assert (after >= fold.test_end + reach).all()
        # And no more is left out than that.
        away = inside.filter(
            (
                (pl.col("at") < fold.test_start)
                & (pl.col("at") + folds.label_delay <= fold.test_start)
            )
            | (pl.col("at") >= fold.test_end + reach)
        )
        assert train.height == away.height
        assert (test["at"] >= fold.test_start).all()
        assert (test["at"] < fold.test_end).all()
    assert sum(test.height for _, test in sides(frame, folds)) == inside.height


@LAW
@given(frame=frames(), folds=grouped | grouped_in_time)
def test_no_group_is_on_both_sides(frame, folds):
    for train, test in sides(frame, folds):
        assert not set(train["group"]) & set(test["group"])


@LAW
@given(frame=frames(), folds=grouped | dealt)
def test_parts_of_groups_or_rows_test_all_that_lies_in_the_stretch(frame, folds):
    within = pl.col("at").is_between(folds.start_utc, folds.end_utc, closed="left")
    inside = frame.filter(within).height
    found = sides(frame, folds)
    assert sum(test.height for _, test in found) == inside
    if isinstance(folds, RandomFolds):
        assert {train.height + test.height for train, test in found} == {inside}
        positives = [test["label"].sum() for _, test in found]
        assert max(positives) - min(positives) <= 2, "positives are spread over the parts"


def test_the_seed_decides_who_is_in_which_part():
    random = np.random.default_rng(0)
    at = pl.Series(
        [START.replace(tzinfo=UTC) + HOUR * n for n in range(200)], dtype=pl.Datetime("us", "UTC")
    )
    frame = pl.DataFrame(
        {"row": range(200), "at": at, "group": random.integers(0, 40, 200), "label": 0}
    )
    for kind, more in ((RandomFolds, {}), (GroupFolds, {"group": "group"})):
        one, again, other = (
            [
                test["row"].to_list()
                for _, test in sides(frame, kind(**STRETCH, **more, num_folds=4, seed=seed))
            ]
            for seed in (0, 0, 1)
        )
        assert one == again
        assert one != other


def test_rows_of_no_group_are_refused_where_groups_are_kept_apart():
    frame = pl.DataFrame(
        {"at": [START.replace(tzinfo=UTC)] * 2, "group": [1, None], "label": [0, 1], "row": [0, 1]},
        schema_overrides={"at": pl.Datetime("us", "UTC")},
    )
    with pytest.raises(TrainingDataError, match="1 rows have no group"):
        sides(frame, GroupFolds(**STRETCH, group="group", num_folds=2))
