"""Scores one slice of a table after another, with a model that was verified and loaded once."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from penstock.errors import BusyError, DeclarationError
from penstock.features.historical import HistoricalReader
from penstock.registry.package import VerifiedPackage, verify
from penstock.registry.versions import ModelVersion
from penstock.scorer import load_scorer
from penstock.serving.score_parts import ScoreParts
from penstock.settings import Settings, load_settings

SCORE = "score"
# Of a tree ensemble, blocks that stay in the core's cache take a tenth less time than all at once.
_ROWS_PER_RUN = 4096


@dataclass(frozen=True, kw_only=True)
class ScoringWork:
    """All that a worker needs; it opens the rest itself."""

    settings: Settings
    model: ModelVersion
    source: str
    source_version: int

    def here(self) -> Settings:
        """The settings with the project's folder as this node has it."""
        root = self.settings.project_root
        return self.settings if root.is_dir() else load_settings()

    def open_package(self) -> VerifiedPackage:
        """Verify the model's package.

        Raises:
            IntegrityError: it is not what was registered.
        """
        return verify(Path(self.model.path), self.here(), digest=self.model.digest)

    def open_reader(self, package: VerifiedPackage) -> HistoricalReader:
        """Open the rows, with the features that the model takes.

        Raises:
            DeclarationError: the model's service no longer has them.
        """
        signature = package.signature
        reader = HistoricalReader(
            self.here(),
            use_case=signature.use_case,
            service=signature.feature_service,
            table=self.source,
            version=self.source_version,
        )
        if set(signature.feature_names) - set(reader.feature_names):
            raise DeclarationError(
                f"the service {signature.feature_service} no longer has "
                + ", ".join(sorted(set(signature.feature_names) - set(reader.feature_names))),
                next_step="declare a new service for a new model, and leave the old one as it is",
            )
        return reader


class SliceScorer:
    """Leaves the scores of each slice that it is given as a part."""

    def __init__(self, work: ScoringWork, parts: ScoreParts) -> None:
        """Verify and load the model, and open the tables.

        Raises:
            IntegrityError: the model is not what was registered.
            BusyError: the feature tables are no longer those that the parts are planned of.
        """
        package = work.open_package()
        self._work = work
        self._parts = parts
        self._reader = work.open_reader(package)
        self._feature_names = package.signature.feature_names
        self._score = load_scorer(package.onnx)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Score the slices whose numbers the batch has, and give them back; Ray Data's side."""
        for number in batch.column("number").to_pylist():
            self.score(number)
            yield pa.table({"number": [number]})

    def score(self, number: int) -> None:
        """Score a slice and publish its part.

        Raises:
            BusyError: the feature tables are no longer those that the parts are planned of.
        """
        part = self._parts.slices[number]
        scores = self.scores(number)
        if scores.height != part.num_rows:
            raise AssertionError(f"{part.num_rows} rows became {scores.height} scores")
        # Behind the reading: versions only grow, so what was read was of the planned ones.
        self._reader.check_unchanged()
        if self._reader.feature_table_versions != self._parts.feature_table_versions:
            raise BusyError(
                f"the feature tables behind {self._work.model.name} were rebuilt meanwhile",
                next_step="try again when the build has ended",
            )
        self._parts.publish(number, scores)

    def scores(self, number: int) -> pl.DataFrame:
        """Give the slice's scores: key, event time, score, missing features, model, prediction."""
        reader, model = self._reader, self._work.model
        rows = reader.read(self._parts.slices[number])
        features = rows.select(
            pl.col(name).cast(pl.Float64).fill_null(np.nan) for name in self._feature_names
        )
        matrix = features.to_numpy(order="c")
        scores = self._scores_of(matrix)
        return rows.select(
            *reader.row_columns,
            pl.Series(SCORE, np.where(np.isfinite(scores), scores, np.nan)).fill_nan(None),
            pl.Series("num_missing_features", np.isnan(matrix).sum(axis=1, dtype=np.int64)),
            pl.lit(model.name).alias("model"),
            pl.lit(model.version, dtype=pl.Int64).alias("model_version"),
            prediction_ids(rows.select(reader.key), model.digest, self._work.source),
        )

    def _scores_of(self, matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        starts = range(0, len(matrix), _ROWS_PER_RUN)
        return np.concatenate([self._score(matrix[s : s + _ROWS_PER_RUN]) for s in starts])


def prediction_ids(keys: pl.DataFrame, model_digest: str, source: str) -> pl.Series:
    """Name each prediction by its model, its table and its row: the same again, whenever scored.

    32 hex digits. A key of one whole number is in the last 16 of them, behind 64 bits of a BLAKE2b
    of model and table: no two rows of a table share an id, and making it takes a tenth of the time.
    Any other key is hashed along, to 128 bits.
    """
    named = f"{model_digest}\0{source}\0".encode()
    numbers = keys.to_series()
    if keys.width == 1 and numbers.dtype.is_signed_integer() and not numbers.has_nulls():
        return _numbered_ids(numbers, hashlib.blake2b(named, digest_size=8).digest())
    return _hashed_ids(keys, hashlib.blake2b(named, digest_size=16))


def _numbered_ids(numbers: pl.Series, base: bytes) -> pl.Series:
    ids = np.empty((len(numbers), 2), dtype=">u8")
    ids[:, 0] = int.from_bytes(base, "big")
    ids[:, 1] = numbers.cast(pl.Int64).to_numpy().view(np.uint64)
    binary = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(ids), [None, pa.py_buffer(ids)]
    )
    named = pl.Series("prediction_id", pl.from_arrow(binary.cast(pa.binary())), dtype=pl.Binary)
    return named.bin.encode("hex")


def _hashed_ids(keys: pl.DataFrame, base: "hashlib.blake2b") -> pl.Series:
    # The text of a key with a length before each part: no two keys share it.
    parts = [pl.col(column).cast(pl.String).fill_null("null") for column in keys.columns]
    sized = [pl.format("{}:{}", part.str.len_bytes(), part) for part in parts]
    texts = keys.select(pl.concat_str(sized).cast(pl.Binary))
    named = [pl.Series("prediction_id", [], dtype=pl.Binary)]
    # A Python object for each row, but never for all rows: the same memory serves again.
    for some in texts.iter_slices(_ROWS_PER_RUN):
        digests = []
        for text in some.to_series().to_list():
            digest = base.copy()
            digest.update(text)
            digests.append(digest.digest())
        named.append(pl.Series("prediction_id", digests, dtype=pl.Binary))
    return pl.concat(named).bin.encode("hex")
