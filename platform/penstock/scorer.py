"""The door to onnxruntime: the bytes of a model's one graph become a function over rows.

The same function judges a run, compares it with its native weights and serves it, so that no two
of them can disagree.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from penstock.errors import IntegrityError, UserError

INPUT_NAME = "features"
OUTPUT_NAME = "score"
_ONNX_ERROR = 3
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

Scorer = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def load_scorer(graph: bytes, *, num_features: int | None = None, on_gpu: bool = False) -> Scorer:
    """Load a graph: float64 [n, F], NaN for missing -> float64 [n]; not finite = no answer.

    Args:
        graph: the graph's bytes; verified, where they come from a model version.
        num_features: F, where it is known what it has to be.
        on_gpu: run it on the first GPU that the process sees, or not at all.

    Raises:
        UserError: it has to run on a GPU, and onnxruntime here has no CUDA, or sees no GPU.
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
    if on_gpu and _CUDA not in onnxruntime.get_available_providers():
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} here has no CUDA provider, and the model is to "
            "run on a GPU",
            next_step="on the nodes with GPUs: pip uninstall onnxruntime, then pip install "
            "'onnxruntime-gpu[cuda,cudnn]' of the same version; or leave num_gpus_per_replica out",
        )
    # What CUDA has no kernel for runs on the CPU, in the same session.
    providers = [_CUDA, _CPU] if on_gpu else [_CPU]
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises a class of its own per status
        raise _wrong(f"does not load: {error}") from None
    # Where CUDA does not start, onnxruntime only warns and takes the CPU.
    if on_gpu and _CUDA not in session.get_providers():
        raise UserError(
            "onnxruntime has a CUDA provider here, and it does not start",
            next_step="look at `nvidia-smi`, and for CUDA's and cuDNN's libraries in the versions "
            "that this onnxruntime asks for",
        )
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
