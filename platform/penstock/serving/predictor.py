"""A model's ONNX graph, run from verified bytes on one thread."""

import numpy as np
import onnxruntime

from penstock.errors import IntegrityError
from penstock.registry.package import VerifiedPackage

INPUT_NAME = "features"
OUTPUT_NAME = "score"
_ONNX_ERROR = 3


class Predictor:
    """Gives a score for each row of features."""

    def __init__(self, package: VerifiedPackage) -> None:
        """Load the graph and check that it is the one of the package's signature.

        Raises:
            IntegrityError: the graph does not load, or its input and output are not
                `features` float64 [n, F] and `score` float32 [n].
        """
        self._num_features = len(package.signature.feature_names)
        options = onnxruntime.SessionOptions()
        # The replica's event loop is the one busy thread; a pool would fight it for its core.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ONNX_ERROR
        try:
            self._session = onnxruntime.InferenceSession(
                package.onnx, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # noqa: BLE001 - onnxruntime raises a class of its own per status
            raise _wrong_graph(package, f"does not load: {error}") from None
        given = [(node.name, node.type) for node in self._session.get_inputs()]
        if given != [(INPUT_NAME, "tensor(double)")]:
            raise _wrong_graph(package, f"takes {given}")
        width = self._session.get_inputs()[0].shape[-1]
        if isinstance(width, int) and width != self._num_features:
            raise _wrong_graph(package, f"takes {width} features, not {self._num_features}")
        if OUTPUT_NAME not in [node.name for node in self._session.get_outputs()]:
            raise _wrong_graph(package, f"has no output {OUTPUT_NAME}")

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Score rows of features.

        Args:
            features: float64 [n, F], the columns in the order of the signature, NaN = missing.

        Returns:
            float64 [n]; NaN or infinite where the graph has no answer for a row's values.
        """
        scores = self._session.run([OUTPUT_NAME], {INPUT_NAME: np.ascontiguousarray(features)})[0]
        return np.asarray(scores, dtype=np.float64).reshape(-1)

    def check_golden_row(self) -> None:
        """Predict one row of missing values: a replica that can't do that must not become ready.

        Raises:
            IntegrityError: the graph fails, or gives no number.
        """
        try:
            score = self.predict(np.full((1, self._num_features), np.nan))
        except Exception as error:  # noqa: BLE001 - onnxruntime raises a class of its own per status
            raise IntegrityError(f"the model fails on a row without features: {error}") from None
        if score.shape != (1,) or not np.isfinite(score[0]):
            raise IntegrityError(f"the model gives {score} for a row without features")


def _wrong_graph(package: VerifiedPackage, what: str) -> IntegrityError:
    manifest = package.manifest
    return IntegrityError(
        f"the graph of {manifest.model} version {manifest.version} {what}",
        allowed=f"one input {INPUT_NAME} float64 [n, F] and an output {OUTPUT_NAME} float32 [n]",
        next_step="train and register it again",
    )
