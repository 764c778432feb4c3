from pathlib import Path

import numpy as np
import onnx
import pytest

from bundles import logistic_graph
from int8_runs import NAMES, TINY, examples, leave_run
from penstock.registry.int8_graph import to_int8
from penstock.scorer import load_scorer
from penstock.training.declarations import PreprocessingPolicy, TorchMLP
from penstock.training.estimators.graph import assemble, weighted_mean
from penstock.training.preprocessing import Preprocessing

ROWS = examples().features
EVERYTHING = PreprocessingPolicy(scaling="robust", missing_flags=True, num_components=6)
THREE = TorchMLP(hidden_sizes=(8, 8, 8), num_epochs=1, batch_size=500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nets")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> bytes:
    """Two layers, behind a preprocessing that has all there is."""
    return leave_run(folder / "tiny", TINY, None, policy=EVERYTHING).onnx


@pytest.fixture(scope="module")
def three(folder: Path) -> bytes:
    return leave_run(folder / "three", THREE, None).onnx


def prepared(graph: bytes, rows: np.ndarray) -> np.ndarray:
    """What the preprocessing hands on: its float32 output, one rounding after float64."""
    import onnxruntime

    model = onnx.load_from_string(graph)
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("prepared", onnx.TensorProto.FLOAT, None)
    )
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (columns,) = session.run(["prepared"], {"features": rows})
    return columns


def test_preprocessing_stays_float64_to_the_bit(tiny):
    made, num_layers = to_int8(tiny, ROWS)
    assert num_layers == 2
    # Its projection is a product too, of float64.
    assert "MatMul" in [node.op_type for node in onnx.load_from_string(made).graph.node]
    np.testing.assert_array_equal(prepared(made, ROWS), prepared(tiny, ROWS))


def test_all_layers_but_the_last_are_in_int8(three):
    made, num_layers = to_int8(three, ROWS)
    assert num_layers == 3
    constants = onnx.load_from_string(made).graph.initializer
    shapes = [tuple(c.dims) for c in constants if c.data_type == onnx.TensorProto.INT8]
    assert sorted(shape for shape in shapes if len(shape) == 2) == [(8, 8), (8, 8), (8, 12)]
    scores = load_scorer(made, num_features=len(NAMES))(ROWS)
    assert np.isfinite(scores).all()
    # In 256 steps there could be no more of them.
    assert len(np.unique(scores)) > 300


def test_each_net_of_an_ensemble_keeps_its_last_layer(tiny, three):
    mean = weighted_mean([(0.5, tiny), (0.5, three)], num_columns=len(NAMES))
    plain = Preprocessing(means=np.zeros(len(NAMES)), scales=np.ones(len(NAMES)))
    made, num_layers = to_int8(assemble(plain, mean), ROWS)
    assert num_layers == 2 + 3
    assert np.isfinite(load_scorer(made)(ROWS)).all()


def test_a_graph_of_one_layer_has_nothing_to_change():
    assert to_int8(logistic_graph(), np.zeros((10, 3))) is None


def test_the_same_graph_and_rows_give_the_same_bytes(tiny):
    assert to_int8(tiny, ROWS) == to_int8(tiny, ROWS)


@pytest.mark.parametrize("num_rows", [1, 1500])
def test_any_number_of_rows_gives_ranges(tiny, num_rows: int):
    assert to_int8(tiny, ROWS[:num_rows]) is not None


@pytest.mark.parametrize("is_dynamic", [False, True])
def test_a_row_beside_it_changes_no_score_as_it_would_with_ranges_from_the_batch(
    three, tmp_path, is_dynamic
):
    made, _ = to_int8(three, ROWS)
    if is_dynamic:
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(inner_only(three), tmp_path / "dynamic.onnx")
        made = (tmp_path / "dynamic.onnx").read_bytes()
    score, rows = load_scorer(made), ROWS[:64].copy()
    before = score(rows)
    rows[7] = 1e9
    others = np.arange(len(rows)) != 7
    assert (score(rows)[others] == before[others]).all() != is_dynamic


def inner_only(graph: bytes) -> onnx.ModelProto:
    """A graph as onnxruntime's dynamic quantiser takes it."""
    model = onnx.load_from_string(graph)
    del model.opset_import[1:]
    del model.graph.value_info[:]
    return model
