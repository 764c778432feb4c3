"""The laws of the test, on simulated arms that are looked at without end."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import some_slow
from penstock.serving.sequential import MIN_UNITS, ArmMoments, Comparison, compare

ALPHA = 0.05
NUM_RUNS = 400
NUM_LOOKS = 25
MARGIN = 3 * math.sqrt(ALPHA * (1 - ALPHA) / NUM_RUNS)
"""Three standard deviations of what chance alone does to the share of 400 runs."""

Draw = Callable[[np.random.Generator, int], np.ndarray]
NORMAL: Draw = lambda random, size: random.normal(size=size)  # noqa: E731
DRAWS: dict[str, Draw] = {
    "normal": NORMAL,
    "rare": lambda random, size: (random.random(size) < 0.01).astype(float),
    "skewed": lambda random, size: np.exp(1.5 * random.normal(size=size)),
    "heavy tails": lambda random, size: random.standard_t(3, size=size),
}
ARMS = st.builds(
    ArmMoments,
    num_units=st.integers(0, 5_000),
    num_outcomes=st.integers(5_000, 9_000),
    mean=st.floats(-10, 10),
    variance=st.floats(0, 10),
    outcome_variance=st.floats(0.1, 10),
)


def arm(outcomes: np.ndarray) -> ArmMoments:
    """Of units with one outcome each."""
    variance = float(outcomes.var(ddof=1))
    return ArmMoments(
        num_units=len(outcomes),
        num_outcomes=len(outcomes),
        mean=float(outcomes.mean()),
        variance=variance,
        outcome_variance=variance,
    )


def moments_at(outcomes: np.ndarray, ends: np.ndarray) -> list[ArmMoments]:
    """Of the first so many outcomes each, by running sums: a look at all of them is too slow."""
    centre = outcomes.mean()
    sums = np.cumsum(outcomes - centre)[ends - 1]
    variances = (np.cumsum((outcomes - centre) ** 2)[ends - 1] - sums**2 / ends) / (ends - 1)
    return [
        ArmMoments(num_units=n, num_outcomes=n, mean=m, variance=v, outcome_variance=v)
        for n, m, v in zip(
            ends.tolist(),
            (sums / ends + centre).tolist(),
            np.maximum(variances, 0).tolist(),
            strict=True,
        )
    ]


def looks(
    random: np.random.Generator, draw: Draw, *, share: float = 0.5, effect: float = 0.0, size: int
) -> list[Comparison]:
    """What somebody sees who looks again and again while units come in."""
    is_new = random.random(size) < share
    outcomes = draw(random, size) + effect * is_new
    num_new = np.cumsum(is_new)
    seen = np.geomspace(2 * MIN_UNITS, size, NUM_LOOKS).astype(int)
    seen = seen[np.minimum(num_new, np.arange(1, size + 1) - num_new)[seen - 1] >= MIN_UNITS]
    new = moments_at(outcomes[is_new], num_new[seen - 1])
    old = moments_at(outcomes[~is_new], seen - num_new[seen - 1])
    found = [compare(one, other, alpha=ALPHA) for one, other in zip(new, old, strict=True)]
    return [one for one in found if one is not None]


def naive_p_value(new: ArmMoments, old: ArmMoments) -> float:
    """The fixed-n test that everybody knows, good for one look."""
    deviation = math.sqrt(new.variance / new.num_units + old.variance / old.num_units)
    return math.erfc(abs(new.mean - old.mean) / deviation / math.sqrt(2))


class TestUnderContinuousLooking:
    @pytest.mark.parametrize("name", some_slow(DRAWS, in_every_run={"normal", "rare"}))
    @pytest.mark.parametrize("share", some_slow((0.5, 0.1), in_every_run={0.5}))
    def test_no_difference_is_found_where_there_is_none(self, name: str, share: float):
        random = np.random.default_rng(1)
        runs = [looks(random, DRAWS[name], share=share, size=6_000) for _ in range(NUM_RUNS)]
        assert min(map(len, runs)) > 5
        wrong = np.mean([any(seen.p_value <= ALPHA for seen in run) for run in runs])
        assert wrong <= ALPHA + MARGIN

    def test_a_test_of_one_look_would_find_one_far_too_often(self):
        random = np.random.default_rng(1)
        wrong = 0
        for _ in range(NUM_RUNS):
            new, old = random.normal(size=(2, 3_000))
            seen = np.geomspace(MIN_UNITS, 3_000, NUM_LOOKS).astype(int)
            pairs = zip(moments_at(new, seen), moments_at(old, seen), strict=True)
            wrong += any(naive_p_value(*pair) <= ALPHA for pair in pairs)
        assert wrong / NUM_RUNS > 3 * ALPHA

    def test_the_interval_holds_the_true_difference_at_every_look_at_once(self):
        random = np.random.default_rng(2)
        runs = [looks(random, NORMAL, effect=0.2, size=6_000) for _ in range(NUM_RUNS)]
        missed = [any(not seen.low <= 0.2 <= seen.high for seen in run) for run in runs]
        assert np.mean(missed) <= ALPHA + MARGIN

    def test_a_difference_of_a_tenth_of_a_deviation_is_found_in_eight_thousand_units(self):
        random = np.random.default_rng(3)
        runs = [looks(random, NORMAL, effect=0.1, size=8_000) for _ in range(NUM_RUNS)]
        found = [any(seen.low > 0 for seen in run) for run in runs]
        assert np.mean(found) > 0.9
        assert not any(seen.high < 0 for run in runs for seen in run)


def of_clusters(
    random: np.random.Generator, *, by_unit: bool
) -> list[tuple[ArmMoments, ArmMoments]]:
    """Units that come one after the other and go on having outcomes that resemble each other."""
    num_units, num_outcomes = 600, 6_000
    # Who comes early has more of them.
    unit = (num_units * random.random(num_outcomes) * random.random(num_outcomes)).astype(int)
    starts = np.sort(unit * num_outcomes / num_units + random.exponential(3_000, num_outcomes))
    order = np.argsort(starts)
    unit = unit[order]
    own = random.normal(size=num_units)
    is_new = random.random(num_units) < 0.5
    outcomes = own[unit] + 0.5 * random.normal(size=num_outcomes)
    seen = []
    for end in np.geomspace(1_500, num_outcomes, 12).astype(int):
        arms = []
        for side in (True, False):
            ours = is_new[unit[:end]] == side
            values, of = outcomes[:end][ours], unit[:end][ours]
            counts = np.bincount(of, minlength=num_units)
            means = np.bincount(of, values, num_units)[counts > 0] / counts[counts > 0]
            each = arm(means if by_unit else values)
            arms.append(each.model_copy(update={"outcome_variance": float(values.var()),
                                                "num_outcomes": len(values)}))  # fmt: skip
        seen.append((arms[0], arms[1]))
    return seen


class TestUnits:
    @staticmethod
    def share_of_wrong_runs(*, by_unit: bool) -> float:
        random = np.random.default_rng(4)
        wrong = 0
        for _ in range(NUM_RUNS // 2):
            found = [compare(*arms, alpha=ALPHA) for arms in of_clusters(random, by_unit=by_unit)]
            assert all(found)
            wrong += any(one is not None and one.p_value <= ALPHA for one in found)
        return wrong / (NUM_RUNS // 2)

    def test_outcomes_of_one_unit_count_as_one(self):
        assert self.share_of_wrong_runs(by_unit=True) <= ALPHA + math.sqrt(2) * MARGIN

    def test_each_counted_alone_would_find_differences_of_chance(self):
        assert self.share_of_wrong_runs(by_unit=False) > 5 * ALPHA


class TestCompare:
    @given(ARMS, ARMS, st.floats(0.001, 0.5))
    def test_swapped_arms_differ_by_their_sign_alone(self, new, old, alpha):
        one, other = compare(new, old, alpha=alpha), compare(old, new, alpha=alpha)
        assert (one is None) == (other is None)
        if one is None or other is None:
            return
        assert one.difference == -other.difference
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low), rel=1e-9, abs=1e-12)
        assert one.p_value == pytest.approx(other.p_value, rel=1e-6)
        assert one.factor_missing == other.factor_missing

    @given(ARMS, ARMS, st.floats(0.001, 0.5))
    def test_it_is_decided_where_the_interval_leaves_zero_out(self, new, old, alpha):
        found = compare(new, old, alpha=alpha)
        if found is None:
            return
        assert 0 <= found.p_value <= 1
        if abs(found.p_value - alpha) > 1e-9:
            is_decided = not found.low <= 0 <= found.high
            assert is_decided == (found.p_value < alpha) == (found.factor_missing == 1.0)

    @given(st.floats(-100, 100).filter(lambda shift: abs(shift) > 1e-3), st.floats(0.01, 100))
    def test_the_unit_of_the_outcome_does_not_matter(self, shift, scale):
        random = np.random.default_rng(5)
        new, old = random.normal(0.3, 1, 150), random.normal(size=170)
        one = compare(arm(new), arm(old), alpha=ALPHA)
        other = compare(arm(scale * new + shift), arm(scale * old + shift), alpha=ALPHA)
        assert other.p_value == pytest.approx(one.p_value, rel=1e-6)
        assert other.high == pytest.approx(scale * one.high, rel=1e-6)

    def test_so_many_units_more_decide_where_the_difference_stays(self):
        random = np.random.default_rng(6)
        new, old = arm(random.normal(0.1, 1, 400)), arm(random.normal(size=400))
        found = compare(new, old, alpha=ALPHA)
        assert found.p_value > ALPHA
        assert found.factor_missing > 1

        def more(one: ArmMoments) -> ArmMoments:
            number = math.ceil(one.num_units * found.factor_missing * 1.01)
            return one.model_copy(update={"num_units": number, "num_outcomes": number})

        assert compare(more(new), more(old), alpha=ALPHA).p_value <= ALPHA

    def test_of_too_few_units_nothing_is_said(self):
        few, many = np.arange(MIN_UNITS - 1.0), np.arange(1_000.0)
        assert compare(arm(few), arm(many), alpha=ALPHA) is None
        assert compare(arm(many), arm(few), alpha=ALPHA) is None

    @pytest.mark.parametrize("value", [0.0, 0.1, -1e9 / 3])
    def test_where_nothing_varies_nothing_is_said(self, value: float):
        one, other = np.full(300, value), np.full(501, value)
        assert compare(arm(one), arm(other), alpha=ALPHA) is None

    def test_a_small_arm_without_a_rare_outcome_is_no_proof(self):
        # By its own word its variance is 0, and the large arm's is small.
        new, old = np.zeros(100), np.zeros(1_900)
        old[::100] = 1
        assert compare(arm(new), arm(old), alpha=ALPHA).p_value > 0.5

    def test_arms_that_are_each_of_one_value_differ(self):
        found = compare(arm(np.ones(100)), arm(np.zeros(100)), alpha=ALPHA)
        assert found.p_value < 1e-6
        assert found.low > 0

    def test_no_difference_at_all_has_no_number_that_is_missing(self):
        values = np.arange(200.0)
        found = compare(arm(values), arm(values), alpha=ALPHA)
        assert (found.difference, found.p_value, found.factor_missing) == (0, 1, None)
