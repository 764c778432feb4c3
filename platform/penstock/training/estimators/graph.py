"""Builds the one ONNX graph that is served: fill, scale, encode, project, estimate."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, compose, helper, numpy_helper, version_converter

from penstock.training.declarations import Task
from penstock.training.estimators.base import INPUT, OUTPUT
from penstock.training.preprocessing import Preprocessing

FEATURES = "features"
"""The whole graph's input: float64 [n, F], NaN is missing."""
_BATCH = "n"
_MAIN_DOMAIN = ("", "ai.onnx")
_ML_DOMAIN = "ai.onnx.ml"


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


def weighted_mean(members: Sequence[tuple[float, bytes]], *, num_columns: int) -> bytes:
    """Give the graph of the weighted mean of graphs that `assemble` gave.

    Args:
        members: each one's share and its graph, of float64 [n, num_columns].
        num_columns: the width of the one input.

    Returns:
        An estimator's own graph: `INPUT` float32 [n, num_columns] in, `OUTPUT` float32 [n] out.
    """
    graphs = [onnx.load_from_string(graph) for _, graph in members]
    # Graphs share one version of each set of operators: the newest that any of them is written in.
    opset = max(_opset(graph, "") for graph in graphs)
    graphs = [_raised(graph, opset) for graph in graphs]
    ml_opset = max(_opset(graph, _ML_DOMAIN) for graph in graphs)
    nodes = [helper.make_node("Cast", [INPUT], [FEATURES], to=TensorProto.DOUBLE)]
    constants, terms, functions = [], [], []
    for place, ((share, _), graph) in enumerate(zip(members, graphs, strict=True)):
        own = compose.add_prefix(graph, f"member_{place}_", rename_inputs=False)
        nodes.extend(own.graph.node)
        constants.extend(own.graph.initializer)
        functions.extend(own.functions)
        weight = numpy_helper.from_array(np.asarray(share, np.float32), f"share_{place}")
        constants.append(weight)
        terms.append(f"term_{place}")
        score = f"member_{place}_{OUTPUT}"
        nodes.append(helper.make_node("Mul", [score, weight.name], [terms[-1]]))
    nodes.append(helper.make_node("Sum", terms, [OUTPUT]))
    whole = helper.make_graph(
        nodes,
        "ensemble",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [_BATCH, num_columns])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [_BATCH])],
        constants,
    )
    opsets = [helper.make_opsetid("", opset)]
    if ml_opset:
        opsets.append(helper.make_opsetid(_ML_DOMAIN, ml_opset))
    model = helper.make_model(
        whole,
        opset_imports=opsets,
        functions=functions,
        ir_version=max(graph.ir_version for graph in graphs),
    )
    serialised: bytes = drop_unused(model).SerializeToString()
    return serialised


def _opset(graph: onnx.ModelProto, domain: str) -> int:
    same = _MAIN_DOMAIN if domain == "" else (domain,)
    return max((o.version for o in graph.opset_import if o.domain in same), default=0)


def _raised(graph: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Write the graph in a newer opset; operators of other domains stay as they are."""
    if _opset(graph, "") == opset:
        return graph
    return version_converter.convert_version(graph, opset)


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
