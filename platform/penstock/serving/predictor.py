"""A model's ONNX graph, run from verified bytes on one thread, or on a GPU."""

import numpy as np

from penstock.errors import IntegrityError
from penstock.registry.package import VerifiedPackage
from penstock.scorer import load_scorer


class Predictor:
    """Gives a score for each row of features."""

    def __init__(self, package: VerifiedPackage) -> None:
        """Load the graph and check that it is the one of the package's signature.

        Raises:
            IntegrityError: the graph does not load, or its input and output are not
                `features` float64 [n, F] and `score` float32 [n].
            UserError: a GPU is declared, and onnxruntime can't use one here.
        """
        self._num_features = len(package.signature.feature_names)
        try:
            self._score = load_scorer(
                package.onnx,
                num_features=self._num_features,
                on_gpu=package.signature.serving.num_gpus_per_replica > 0,
            )
        except IntegrityError as error:
            manifest = package.manifest
            raise IntegrityError(
                f"{manifest.model} version {manifest.version}: {error.found}",
                allowed=error.allowed,
                next_step="train and register it again",
            ) from None

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Score rows of features.

        Args:
            features: float64 [n, F], the columns in the order of the signature, NaN = missing.

        Returns:
            float64 [n]; NaN or infinite where the graph has no answer for a row's values.
        """
        return self._score(features)

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
