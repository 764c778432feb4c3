"""The one graph."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from penstock.training.estimators.graph import assemble, drop_unused
from penstock.training.preprocessing import Preprocessing


def first_column(opset):
    """An estimator's graph that gives the first scaled feature back."""
    nodes = [
        helper.make_node("ReduceSum", ["scaled"], ["unused"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["scaled", "zero"], ["score"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "first",
        [helper.make_tensor_value_info("scaled", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, [None])],
    )
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def run(graph, features):
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return session.run(["score"], {"features": np.asarray(features)})[0]


class TestAssemble:
    SCALING = Preprocessing(means=np.array([1e9, 0.0]), scales=np.array([2.0, 1.0]))

    def test_it_fills_and_scales_in_float64_whatever_the_estimators_opset(self):
        for opset in (15, 18, 20):
            graph = assemble(self.SCALING, first_column(opset).SerializeToString())
            scores = run(graph, [[1e9 + 1, 0.0], [np.nan, 0.0]])
            assert scores.tolist() == [0.5, 0.0]

    def test_it_has_one_input_and_one_output(self):
        graph = assemble(self.SCALING, first_column(18).SerializeToString())
        model = onnx.load_from_string(graph)
        assert [i.name for i in model.graph.input] == ["features"]
        assert [o.name for o in model.graph.output] == ["score"]
        assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.DOUBLE


def test_what_no_output_needs_is_dropped():
    model = drop_unused(first_column(18))
    assert [node.op_type for node in model.graph.node] == ["Constant", "Gather"]
