import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundles import logistic_graph, native_score
from penstock.errors import GateRefusedError, IntegrityError
from penstock.registry.agreement import TOLERANCE, check_agreement
from penstock.scorer import load_scorer

ROWS = np.random.default_rng(0).normal([50, 10, 0.01], [40, 5, 0.1], size=(500, 3))


def test_a_graph_that_answers_as_the_native_weights_agrees():
    agreement = check_agreement(native_score, logistic_graph(), ROWS)
    assert agreement.num_rows == 500
    assert agreement.num_rows_with_blanks == 500
    assert 0 < agreement.max_abs_difference < TOLERANCE


@given(bias=st.sampled_from([-2.999, -3.001, 0.0]))
def test_a_graph_that_drifted_is_refused(bias):
    with pytest.raises(GateRefusedError, match="disagree on"):
        check_agreement(native_score, logistic_graph(bias=bias), ROWS)


def test_one_row_that_differs_is_enough():
    def native(rows: np.ndarray) -> np.ndarray:
        scores = native_score(rows)
        scores[123] += 2e-5
        return scores

    with pytest.raises(GateRefusedError, match="disagree on 1 of 1000 rows: row 123"):
        check_agreement(native, logistic_graph(), ROWS)


def scaled(factor: float, shift: float = 0.0) -> bytes:
    """The graph with its score made a number of another size, in float32."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(logistic_graph())
    model.graph.node[-1].output[0] = "probability"
    for name, value in (("factor", factor), ("shift", shift)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    model.graph.node.append(helper.make_node("Mul", ["probability", "factor"], ["product2"]))
    model.graph.node.append(helper.make_node("Add", ["product2", "shift"], ["score"]))
    return model.SerializeToString()


def test_large_numbers_may_differ_in_the_digits_that_float32_has_not():
    agreement = check_agreement(lambda rows: 1e6 * native_score(rows), scaled(1e6), ROWS)
    assert agreement.max_abs_difference > TOLERANCE
    assert TOLERANCE < agreement.tolerance <= 1e6 * TOLERANCE


def test_large_numbers_that_drifted_are_refused():
    with pytest.raises(GateRefusedError, match="disagree"):
        check_agreement(lambda rows: 1e6 * native_score(rows), scaled(1e6, shift=100.0), ROWS)


def test_one_giant_does_not_make_the_others_free():
    def native(rows: np.ndarray) -> np.ndarray:
        scores = native_score(rows)
        scores[7] = 1e9
        return scores

    with pytest.raises(GateRefusedError, match="disagree on 1 of"):
        check_agreement(native, logistic_graph(), ROWS)


def test_scores_that_are_not_finite_are_refused():
    def native(rows: np.ndarray) -> np.ndarray:
        return np.full(len(rows), np.nan)

    with pytest.raises(GateRefusedError, match="disagree on 1000 of 1000"):
        check_agreement(native, logistic_graph(), ROWS)


def test_blanks_filled_in_another_way_are_found_though_the_rows_have_none():
    def native(rows: np.ndarray) -> np.ndarray:
        return native_score(np.nan_to_num(rows, nan=0.0))

    with pytest.raises(GateRefusedError, match="disagree"):
        check_agreement(native, logistic_graph(), ROWS)


def test_no_rows_are_no_agreement():
    with pytest.raises(GateRefusedError, match="no row"):
        check_agreement(native_score, logistic_graph(), ROWS[:0])


def test_bytes_that_are_no_graph_are_refused():
    with pytest.raises(IntegrityError, match="does not load"):
        load_scorer(b"not a graph")
