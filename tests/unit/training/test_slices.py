import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.training.declarations import AveragePrecision, Bootstrap, RocAuc, Slice
from penstock.training.metrics import evaluate
from penstock.training.slices import cut, measure_slices
from penstock.training.validation import Examples

FEW = Bootstrap(num_resamples=100)


def parts(policy: Slice, values: list) -> dict[str, list[int]]:
    column = pl.Series("x", values)
    return {name: np.flatnonzero(rows).tolist() for name, rows in cut(policy, column)}


class TestCut:
    def test_numbers_are_cut_at_the_edges_each_edge_belonging_above(self):
        found = parts(
            Slice(feature="x", edges=(10, 20)), [5.0, 10.0, 19.9, 20.0, None, float("nan")]
        )
        assert found == {
            "below 10": [0],
            "10 to below 20": [1, 2],
            "20 and more": [3],
            "missing": [4, 5],
        }

    def test_values_are_cut_by_themselves_and_the_rare_ones_together(self):
        policy = Slice(column="x", max_values=2)
        assert parts(policy, ["a", "b", "b", "a", "c", None, "d"]) == {
            "a": [0, 3],
            "b": [1, 2],
            "all others": [4, 6],
            "missing": [5],
        }

    @settings(deadline=None)
    @given(
        values=st.lists(st.none() | st.integers(-5, 5) | st.floats(-5, 5), max_size=40),
        edges=st.sets(st.integers(-4, 4), max_size=3),
        max_values=st.integers(1, 4),
    )
    def test_every_row_is_in_exactly_one_part(self, values, edges, max_values):
        policy = Slice(feature="x", edges=tuple(sorted(edges)), max_values=max_values)
        column = pl.Series("x", values, dtype=pl.Float64, strict=False)
        found = [rows for _, rows in cut(policy, column)]
        assert sum(rows.sum() for rows in found) == len(values)
        assert np.all(np.sum(found, axis=0) == 1) if found else not values


@pytest.mark.parametrize(
    "wrong", [{}, {"feature": "a", "column": "b"}, {"feature": "a", "edges": (2, 1)}]
)
def test_a_slice_that_contradicts_itself_is_refused(wrong):
    with pytest.raises(ValidationError):
        Slice(**wrong)


class TestMeasureSlices:
    def test_each_part_has_the_metrics_of_its_own_rows_and_small_ones_are_called_so(self):
        random = np.random.default_rng(0)
        labels = (random.random(300) < 0.4).astype(np.int8)
        scores = np.clip(labels * 0.3 + random.random(300) * 0.7, 0, 1)
        side = np.where(np.arange(300) < 250, "big", "small")
        test = Examples(
            features=np.zeros((300, 1)), labels=labels, frame=pl.DataFrame({"side": side})
        )
        metrics = (RocAuc(), AveragePrecision())
        big, small = measure_slices(
            (Slice(column="side"),), metrics, test, scores, primary_metric="roc_auc", bootstrap=FEW
        )
        own = Examples(features=test.features[:250], labels=labels[:250], frame=test.frame[:250])
        assert big.metrics == evaluate(metrics, own, scores[:250])
        assert big.interval[0] < big.metrics["roc_auc"] < big.interval[1]
        assert (big.num_rows, big.num_positives, big.is_small) == (
            250,
            int(labels[:250].sum()),
            False,
        )
        assert (small.num_rows, small.is_small) == (50, True)

    def test_a_part_of_one_class_has_rows_and_no_metrics(self):
        labels = np.array([0, 1, 0, 0], dtype=np.int8)
        test = Examples(
            features=np.zeros((4, 1)), labels=labels, frame=pl.DataFrame({"x": [1, 1, 2, 2]})
        )
        _, second = measure_slices(
            (Slice(feature="x"),),
            (RocAuc(),),
            test,
            np.array([0.1, 0.9, 0.2, 0.3]),
            primary_metric="roc_auc",
            bootstrap=FEW,
        )
        assert (second.num_rows, second.metrics, second.interval) == (2, {}, None)
