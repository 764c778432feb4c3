"""The door to onnxruntime: the bytes of a model's one graph become a function over rows.

The same function judges a run, compares it with its native weights and serves it, so that no two
of them can disagree.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from penstock.errors import IntegrityError

INPUT_NAME = "features"
OUTPUT_NAME = "score"
_ONNX_ERROR = 3

Scorer = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def load_scorer(graph: bytes, *, num_features: int | None = None) -> Scorer:
    """Load a graph: float64 [n, F], NaN for missing -> float64 [n]; not finite = no answer.

    Args:
        graph: the graph's bytes; verified, where they come from a model version.
        num_features: F, where it is known what it has to be.

    Raises:
        IntegrityError: the graph does not load, or its input and output are not `features`
            float64 [n, F] and `score`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The caller's thread is the busy one; a pool would fight it for its core.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _ONNX_ERROR
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime raises a class of its own per status
        raise _wrong(f"does not load: {error}") from None
    inputs = [(node.name, node.type) for node in session.get_inputs()]
    if inputs != [(INPUT_NAME, "tensor(double)")]:
        raise _wrong(f"takes {inputs}")
    width = session.get_inputs()[0].shape[-1]
    if num_features is not None and isinstance(width, int) and width != num_features:
        raise _wrong(f"takes {width} features, not {num_features}")
    if OUTPUT_NAME not in [node.name for node in session.get_outputs()]:
        raise _wrong(f"has no output {OUTPUT_NAME}")

    def score(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        (scores,) = session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(features)})
        return np.asarray(scores, dtype=np.float64).reshape(-1)

    return score


def _wrong(what: str) -> IntegrityError:
    return IntegrityError(
        f"the graph {what}",
        allowed=f"{INPUT_NAME} float64 [n, F] in, {OUTPUT_NAME} out",
        next_step="train the model again",
    )
