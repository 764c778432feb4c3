"""Scores rows with the exported graph; needs onnxruntime and numpy, nothing else.

    python predict.py --check          the test vector, as it was scored at the export
    python predict.py rows.json        a JSON array of {feature: number or null}; - reads stdin

From Python: `Predictor().predict([{"amount": 12.5, …}])`. A feature that is absent is missing.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

HERE, TOLERANCE = Path(__file__).resolve().parent, 1e-6


class Predictor:
    """The model of this folder."""

    def __init__(self, folder: Path = HERE) -> None:
        """Load the graph, to run on one thread."""
        signature = json.loads((folder / "signature.json").read_text("utf-8"))
        self.feature_names: list[str] = signature["feature_names"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)

    def predict(self, rows: Sequence[Mapping[str, float | None]]) -> list[float]:
        """Give a score for each row."""
        if not rows:
            return []
        names = self.feature_names
        unknown = {name for row in rows for name in row} - set(names)
        if unknown:
            raise ValueError(f"no features: {sorted(unknown)}; there are {names}")
        features = np.array([[row.get(name) for name in names] for row in rows], float)
        (scores,) = self._session.run(["score"], {"features": features})
        return [float(score) for score in scores]


def main() -> int:
    """Check the test vector, or score a file."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    predictor = Predictor()
    if sys.argv[1] == "--check":
        vector = json.loads((HERE / "test_vector.json").read_text("utf-8"))
        off = np.abs(np.array(predictor.predict(vector["rows"])) - vector["scores"])
        print(f"{len(off)} rows, largest difference {off.max():.3g}")
        return 0 if off.max() <= TOLERANCE else 1
    text = sys.stdin.read() if sys.argv[1] == "-" else Path(sys.argv[1]).read_text("utf-8")
    print(json.dumps(predictor.predict(json.loads(text))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
