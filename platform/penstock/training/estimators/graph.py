"""Builds the one ONNX graph that is served: fill, scale, encode, project, estimate."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from penstock.training.declarations import Task
from penstock.training.estimators.base import INPUT, OUTPUT
from penstock.training.preprocessing import Preprocessing

FEATURES = "features"
"""The whole graph's input: float64 [n, F], NaN is missing."""
_BATCH = "n"
_MAIN_DOMAIN = ("", "ai.onnx")


def only_score(model: onnx.ModelProto, task: Task, *, opset_of_added_nodes: int) -> onnx.ModelProto:
    """Make the score the graph's one output.

    It is the second column of a classifier's second output, [n, 2] probabilities, or a regressor's
    only output, [n, 1]. `opset_of_added_nodes` counts where the graph has only operators of other
    domains so far.
    """
    graph = model.graph
    if not any(opset.domain in _MAIN_DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", opset_of_added_nodes))
    graph.initializer.append(numpy_helper.from_array(np.asarray([-1], dtype=np.int64), "flat"))
    column = graph.output[0].name
    if task == "binary":
        positive = numpy_helper.from_array(np.asarray(1, dtype=np.int64), "positive_class")
        graph.initializer.append(positive)
        probabilities, column = graph.output[1].name, "positive"
        graph.node.append(
            helper.make_node("Gather", [probabilities, "positive_class"], [column], axis=1)
        )
    graph.node.append(helper.make_node("Reshape", [column, "flat"], [OUTPUT]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [_BATCH]))
    return drop_unused(model)


def drop_unused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take out the nodes that no output needs, such as a classifier's labels."""
    graph = model.graph
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return model


def assemble(preprocessing: Preprocessing, estimator: bytes) -> bytes:
    """Put the preprocessing before the estimator's graph.

    The preprocessing is written in the opset and IR version of the estimator's graph: two graphs
    merge only where these agree.

    Returns:
        The serialised graph: `features` float64 [n, F] in, `score` float32 [n] out.
    """
    behind = onnx.load_from_string(estimator)
    opset = next(o.version for o in behind.opset_import if o.domain in _MAIN_DOMAIN)
    front = _preprocessing_graph(preprocessing, opset=opset, ir_version=behind.ir_version)
    behind = compose.add_prefix(
        behind, "estimator_", rename_inputs=False, rename_outputs=False, rename_value_infos=True
    )
    merged = compose.merge_models(front, behind, io_map=[("prepared", INPUT)])
    del merged.graph.output[:]
    merged.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [_BATCH]))
    onnx.checker.check_model(merged)
    serialised: bytes = merged.SerializeToString()
    return serialised


def _preprocessing_graph(
    preprocessing: Preprocessing, *, opset: int, ir_version: int
) -> onnx.ModelProto:
    num_features = len(preprocessing.means)
    front = _Front()
    missing = front.add("IsNaN", FEATURES)
    filled = front.add("Where", missing, front.constant(preprocessing.filling), FEATURES)
    centred = front.add("Sub", filled, front.constant(preprocessing.means))
    columns = front.add("Div", centred, front.constant(preprocessing.scales))
    if preprocessing.flagged or preprocessing.codes:
        columns = _joined_columns(front, preprocessing, missing, columns)
    if (projection := preprocessing.projection) is not None:
        centred = front.add("Sub", columns, front.constant(projection.centre))
        columns = front.add("MatMul", centred, front.constant(projection.components))
    # The one rounding to float32; trees compare this very number with their thresholds.
    front.nodes.append(helper.make_node("Cast", [columns], ["prepared"], to=TensorProto.FLOAT))
    width = preprocessing.num_columns
    graph = helper.make_graph(
        front.nodes,
        "preprocessing",
        [helper.make_tensor_value_info(FEATURES, TensorProto.DOUBLE, [_BATCH, num_features])],
        [helper.make_tensor_value_info("prepared", TensorProto.FLOAT, [_BATCH, width])],
        front.constants,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version
    )


def _joined_columns(
    front: "_Front", preprocessing: Preprocessing, missing: str, scaled: str
) -> str:
    """Scaled numbers, flags of absence and a column for each code, in this order."""

    def taken(source: str, places: Sequence[int]) -> str:
        return front.add("Gather", source, front.constant(np.array(places, np.int64)), axis=1)

    parts = []
    if preprocessing.numeric:
        parts.append(taken(scaled, preprocessing.numeric))
    if preprocessing.flagged:
        flags = taken(missing, preprocessing.flagged)
        parts.append(front.add("Cast", flags, to=TensorProto.DOUBLE))
    for place, codes in preprocessing.codes.items():
        # NaN equals no code, as in numpy: a missing one leaves every column at 0.
        is_code = front.add("Equal", taken(FEATURES, [place]), front.constant(codes))
        parts.append(front.add("Cast", is_code, to=TensorProto.DOUBLE))
    return front.add("Concat", *parts, axis=1)


class _Front:
    """The nodes and constants of the preprocessing, each output under a name of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node and give its output's name."""
        output = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, values: npt.NDArray[Any]) -> str:
        """Keep an array and give its name."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name
