"""What a run leaves for the registry: a folder with the graph, the native weights and the facts.

model.onnx        one graph: `features` float64 [n, F], NaN is missing → `score` float32 [n]
native/           preprocessing.json, family.json and the family's own weights, no pickle
signature.json    model, feature service, the features in order, request fields, serving
training.json     run, data, metrics, environment
background.json   training rows to explain scores against, where the model gives explanations
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from penstock.errors import IntegrityError
from penstock.handover import (
    BACKGROUND_FILE,
    MODEL_FILE,
    NATIVE_FOLDER,
    SIGNATURE_FILE,
    TRAINING_FILE,
    Background,
)
from penstock.scorer import Scorer
from penstock.training.estimators import families
from penstock.training.estimators.base import Fitted
from penstock.training.preprocessing import Preprocessing

_PREPROCESSING_FILE = "preprocessing.json"
_FAMILY_FILE = "family.json"


def assemble(preprocessing: Preprocessing, fitted: Fitted) -> bytes:
    """Give the one graph of preprocessing and estimator."""
    from penstock.training.estimators import graph

    return graph.assemble(preprocessing, fitted.onnx)


def write(
    folder: Path,
    *,
    preprocessing: Preprocessing,
    fitted: Fitted,
    graph: bytes,
    signature: Mapping[str, Any],
    training: Mapping[str, Any],
    background: Background | None = None,
) -> None:
    """Write the bundle beside its place and move it there whole; an older one is replaced."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    native = partial / NATIVE_FOLDER
    native.mkdir(parents=True)
    (partial / MODEL_FILE).write_bytes(graph)
    _write_json(native / _PREPROCESSING_FILE, preprocessing.to_json())
    _write_json(native / _FAMILY_FILE, {"family": fitted.native.family})
    fitted.native.save(native)
    _write_json(partial / SIGNATURE_FILE, signature)
    _write_json(partial / TRAINING_FILE, training)
    if background is not None:
        (partial / BACKGROUND_FILE).write_text(background.model_dump_json())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load_native(folder: Path) -> Scorer:
    """Give the predictor of a bundle from `native/` alone.

    Raises:
        IntegrityError: a file of the bundle is missing or of an unknown family.
    """
    native = folder / NATIVE_FOLDER
    try:
        preprocessing = Preprocessing.from_json(
            orjson.loads((native / _PREPROCESSING_FILE).read_bytes())
        )
        family = orjson.loads((native / _FAMILY_FILE).read_bytes())["family"]
        model = families.load(family, native)
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError) as error:
        raise IntegrityError(
            f"the native weights in {native} are not whole: {error}",
            next_step="train again: penstock train",
        ) from error

    def predict(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return model.predict(preprocessing.apply(features))

    return predict


def _write_json(file: Path, parts: Mapping[str, Any]) -> None:
    option = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS
    file.write_bytes(orjson.dumps(dict(parts), option=option))
