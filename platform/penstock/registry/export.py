"""A model version for machines that have no Penstock: its graph, a predictor, and a test vector."""

import contextlib
from importlib import metadata, resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from penstock.errors import PenstockError, UserError
from penstock.files import write_whole
from penstock.handover import MODEL_FILE, SIGNATURE_FILE
from penstock.records import Record
from penstock.registry.package import VerifiedPackage
from penstock.registry.registration import real_rows
from penstock.scorer import load_scorer
from penstock.settings import Settings

PREDICTOR_FILE = "predict.py"
REQUIREMENTS_FILE = "requirements.txt"
VECTOR_FILE = "test_vector.json"
_NEEDS = ("numpy", "onnxruntime")
_NUM_ROWS = 16


class Export(Record):
    """What was written."""

    model: str
    version: int
    folder: str
    files: tuple[str, ...]
    num_rows: int
    """Of the test vector."""


def export(settings: Settings, package: VerifiedPackage, folder: Path) -> Export:
    """Write a version's files into a new or empty folder.

    The predictor takes features, not keys: what the online store gives a deployed model, the device
    must have.

    Args:
        settings: where training sets are: rows of the version's own go into the test vector.
        package: the version.
        folder: where to; made when it is not there.

    Raises:
        UserError: the folder holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty", allowed="a new or an empty folder")
    names = package.signature.feature_names
    rows = _rows(settings, package)
    scores = load_scorer(package.onnx, num_features=len(names))(rows)
    is_scored = np.isfinite(scores)
    vector = {
        "rows": [
            {
                name: None if np.isnan(value) else value
                for name, value in zip(names, row, strict=True)
            }
            for row in rows[is_scored].tolist()
        ],
        "scores": scores[is_scored].tolist(),
    }
    needs = "".join(f"{name}=={metadata.version(name)}\n" for name in _NEEDS)
    predictor = resources.files("penstock.registry.edge").joinpath(PREDICTOR_FILE)
    contents = {
        MODEL_FILE: package.onnx,
        SIGNATURE_FILE: package.files[SIGNATURE_FILE],
        PREDICTOR_FILE: predictor.read_bytes(),
        REQUIREMENTS_FILE: needs.encode(),
        VECTOR_FILE: orjson.dumps(vector, option=orjson.OPT_INDENT_2),
    }
    for name, content in contents.items():
        write_whole(folder / name, content)
    return Export(
        model=package.manifest.model,
        version=package.manifest.version,
        folder=str(folder),
        files=tuple(contents),
        num_rows=int(is_scored.sum()),
    )


def _rows(settings: Settings, package: VerifiedPackage) -> npt.NDArray[np.float64]:
    """Give rows that say something of the model: some of its own, and one where all is missing."""
    names = package.signature.feature_names
    rows = np.random.default_rng(0).normal(size=(_NUM_ROWS - 1, len(names)))
    # A version that came from elsewhere has its training set there.
    with contextlib.suppress(PenstockError, KeyError):
        found = real_rows(settings, package.training["training_set_id"], names)
        rows = found[np.linspace(0, len(found) - 1, len(rows)).astype(int)]
    return np.vstack([rows, np.full(len(names), np.nan)])
