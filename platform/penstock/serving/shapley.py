"""The door to shap: a model's graph becomes a function from rows to each feature's part in a score.

Never imported by a replica: shap takes seconds and 300 MB to load.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.errors import IntegrityError, RequestError
from penstock.handover import BACKGROUND_FILE, Background
from penstock.registry.package import VerifiedPackage
from penstock.scorer import load_scorer
from penstock.serving.explanations import Attribution, explanation, no_explanations

_NUM_SAMPLES = 2048
_SEED = 0
NO_SCORE = "no_score"


class Explainer:
    """Explains scores of one version.

    Kernel SHAP over the version's one graph (Lundberg and Lee, "A unified approach to interpreting
    model predictions", 2017): the same meaning for every family. A feature's part is its Shapley
    value, where a feature that is left out takes the values of the background rows. Up to 11
    features every coalition is looked at and the values are exact; beyond, some two thousand
    coalitions are, those of few and of nearly all features first. The parts always add up.
    """

    def __init__(self, package: VerifiedPackage) -> None:
        """Load the graph and its background.

        Raises:
            NotFoundError: the version was trained without explanations.
            IntegrityError: the graph does not load, or the background is of other features.
        """
        names = package.signature.feature_names
        manifest = package.manifest
        if BACKGROUND_FILE not in package.files:
            raise no_explanations(manifest.model, manifest.version)
        self._background = Background.model_validate_json(package.files[BACKGROUND_FILE])
        if self._background.feature_names != names:
            raise IntegrityError(
                f"{BACKGROUND_FILE} of {manifest.model} version {manifest.version} is of other "
                "features than the model",
                next_step="train it again",
            )
        import shap

        self._score = load_scorer(package.onnx, num_features=len(names))
        rows = np.array(self._background.rows, dtype=np.float64)
        self._kernel: Any = shap.KernelExplainer(self._score, rows)
        self.is_exact = 2 ** len(names) - 2 <= self._num_samples

    @property
    def _num_samples(self) -> int:
        return 2 * len(self._background.feature_names) + _NUM_SAMPLES

    def attribute(self, rows: npt.NDArray[np.float64]) -> list[Attribution]:
        """Find each feature's part in each row's score; the same for the same row, every time.

        Args:
            rows: [n, F], NaN is missing.

        Raises:
            RequestError: the model has no finite score for a row, or a mixture of it and others.
        """
        return [self._attribute_one(row, place) for place, row in enumerate(rows)]

    def _attribute_one(self, row: npt.NDArray[np.float64], place: int) -> Attribution:
        path = f"$.rows[{place}]"
        (score,) = self._score(row[None]).tolist()
        if not np.isfinite(score):
            what = "the model has no finite score for this row"
            raise RequestError(422, NO_SCORE, what, path=path)
        # shap draws from numpy's one source.
        np.random.seed(_SEED)
        parts = self._kernel.shap_values(row, nsamples=self._num_samples, l1_reg=False, silent=True)
        parts = np.asarray(parts, dtype=np.float64)
        if not np.isfinite(parts).all():
            what = "the model has no finite score for a mixture of this row and training rows"
            raise RequestError(422, NO_SCORE, what, path=path)
        base_score = float(self._kernel.expected_value)
        return Attribution(score=score, base_score=base_score, contributions=parts.tolist())

    def explain(self, rows: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
        """Explain each row's score in numbers and words; see `attribute`."""
        background = self._background
        return [
            explanation(
                attribution,
                feature_names=background.feature_names,
                values=values,
                usual=background.usual,
            )
            for attribution, values in zip(self.attribute(rows), rows.tolist(), strict=True)
        ]
