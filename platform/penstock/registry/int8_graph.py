"""Writes a net's graph with its dense layers in 8-bit integers.

The ranges of what flows between the layers are measured on training rows and then fixed (static
quantisation, onnxruntime's QDQ form). Ranges taken from each batch as it comes (dynamic) would let
a stranger's row in the same batch change an answer.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penstock.scorer import INPUT_NAME

if TYPE_CHECKING:
    import onnx

_DENSE = ("MatMul", "Gemm")
_MAIN_DOMAIN = ("", "ai.onnx")
_ROWS_AT_ONCE = 1_000


def to_int8(graph: bytes, rows: npt.NDArray[np.float64]) -> tuple[bytes, int] | None:
    """Give the graph in int8, and how many layers that changed; None where there is none to change.

    A layer is a float32 product with constant weights, such as a net's. The last one before the
    score stays as it is: its 256 values would be all the scores there are. Preprocessing is float64
    and stays as it is, to the bit.

    Args:
        graph: float64 [n, F] in, score out.
        rows: float64 [n, F], n > 0, of the training set: the ranges come from them.
    """
    import onnx

    model = onnx.load_from_string(graph)
    _tidy(model)
    layers = _inner_layers(model)
    if not layers:
        return None
    from onnxruntime import quantization

    changed = {name for node in layers for name in node.output}
    # A ReLU behind a layer disappears in the layer's range, which then begins at zero.
    behind = [n for n in model.graph.node if n.op_type == "Relu" and changed & set(n.input)]
    with TemporaryDirectory() as folder:
        file = Path(folder, "int8.onnx")
        quantization.quantize_static(
            model,
            file,
            _reader(rows),
            op_types_to_quantize=[*_DENSE, "Relu"],
            nodes_to_quantize=[node.name for node in (*layers, *behind)],
            per_channel=True,
            # Of 8-bit weights, pairs of products overflow on CPUs with AVX2 or AVX-512 but no VNNI,
            # which then answer otherwise than the machine that measured. 7 bits fit everywhere:
            # https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return file.read_bytes(), len(layers)


def _tidy(model: "onnx.ModelProto") -> None:
    """Make the graph one that onnxruntime's quantiser takes."""
    from onnx import helper

    # Merged graphs name the main domain twice, which the quantiser does not find then.
    others = [each for each in model.opset_import if each.domain not in _MAIN_DOMAIN]
    newest = max(each.version for each in model.opset_import if each.domain in _MAIN_DOMAIN)
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid("", newest), *others])
    for place, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{place}"
    # Else it warns that nothing optimised the graph before; that would fold float64 constants.
    helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})


def _inner_layers(model: "onnx.ModelProto") -> list["onnx.NodeProto"]:
    """Find the layers with another layer between them and the score."""
    from onnx import TensorProto

    weights = {w.name for w in model.graph.initializer if w.data_type == TensorProto.FLOAT}
    leads_to_layer: set[str] = set()
    inner = []
    for node in reversed(model.graph.node):
        is_followed = bool(leads_to_layer & set(node.output))
        is_layer = node.op_type in _DENSE and node.input[1] in weights
        if is_layer and is_followed:
            inner.append(node)
        if is_layer or is_followed:
            leads_to_layer |= set(node.input)
    return inner[::-1]


def _reader(rows: npt.NDArray[np.float64]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Rows(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            starts = range(0, len(rows), _ROWS_AT_ONCE)
            self._parts = iter([rows[start : start + _ROWS_AT_ONCE] for start in starts])

        def get_next(self) -> dict[str, npt.NDArray[np.float64]] | None:
            part = next(self._parts, None)
            return None if part is None else {INPUT_NAME: part}

    return Rows()
