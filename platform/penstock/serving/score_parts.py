"""The parts of a scoring: one file a slice, there whole or not at all, until all are committed.

A kill leaves the parts that were done, and at most one torn temporary file a worker. The folder's
name is a digest of all that the scores depend on, so the same scoring finds its own parts again,
and nothing else does.
"""

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa

from penstock.errors import IntegrityError
from penstock.features.pinned_rows import TimeSlice
from penstock.files import sync_folder

_SUFFIX = ".arrow"
# Raised when a part's columns or their meaning change: parts of older code are then not taken.
_FORMAT = 1
_ABANDONED_S = 7 * 86_400.0


@dataclass(frozen=True, kw_only=True)
class ScoreParts:
    """Where the parts of one scoring lie, and of which slices they are."""

    folder: Path
    slices: Sequence[TimeSlice]
    feature_table_versions: Mapping[str, int]
    """The versions that every part is made of."""

    def prepare(self) -> None:
        """Make the folder, and clear it of torn files and its surroundings of other plans.

        Only under the lock of the scoring. A worker whose driver was killed may still be at work:
        it loses its temporary file and fails, or publishes the same part again.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for other in self.folder.parent.iterdir():
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        for file in self.folder.iterdir():
            if file.suffix != _SUFFIX:
                file.unlink(missing_ok=True)

    def missing(self) -> list[int]:
        """The slices that have no part yet."""
        return [n for n in range(len(self.slices)) if not self._file(n).exists()]

    def publish(self, number: int, scores: pl.DataFrame) -> None:
        """Bring a part into place, whole: a rename of a file that is on the disk."""
        # A name of its own: a worker whose driver was killed may be writing the same part.
        temporary = self.folder / f"{number:06d}.{uuid.uuid4().hex}"
        table = scores.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
        with temporary.open("xb") as out:
            with pa.ipc.new_file(out, table.schema) as writer:
                writer.write_table(table)
            out.flush()
            os.fsync(out.fileno())
        temporary.rename(self._file(number))
        sync_folder(self.folder)

    def reader(self) -> pa.RecordBatchReader:
        """Stream all parts in the order of the slices, one in memory at a time.

        Raises:
            IntegrityError: a part is not what was published.
        """
        first = next(self._batches(range(1)))
        return pa.RecordBatchReader.from_batches(
            first.schema, self._batches(range(len(self.slices)))
        )

    def _batches(self, numbers: Sequence[int]) -> Iterator[Any]:
        for number in numbers:
            num_rows = 0
            try:
                with pa.memory_map(str(self._file(number))) as file:
                    reader = pa.ipc.open_file(file)
                    for position in range(reader.num_record_batches):
                        batch = reader.get_batch(position)
                        num_rows += batch.num_rows
                        yield batch
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(number, str(error)) from error
            if num_rows != self.slices[number].num_rows:
                wanted = self.slices[number].num_rows
                raise self._damaged(number, f"{num_rows} rows instead of {wanted}")

    def _damaged(self, number: int, what: str) -> IntegrityError:
        return IntegrityError(
            f"the part {self._file(number)} of a scoring is damaged: {what}",
            next_step="remove that file, and give the same command again",
        )

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}{_SUFFIX}"


def plan_parts(
    root: Path,
    *,
    slices: Sequence[TimeSlice],
    feature_table_versions: Mapping[str, int],
    definition: str,
) -> ScoreParts:
    """Place the parts of a scoring: the same plan has the same folder.

    Args:
        root: the folder of this scoring, named by the model's digest, the rows and their table.
        slices: how the rows are cut.
        feature_table_versions: what the features are read from.
        definition: digest of how the features are defined.
    """
    content = {
        "format": _FORMAT,
        "slices": [part.model_dump(mode="json") for part in slices],
        "feature_table_versions": dict(feature_table_versions),
        "definition": definition,
    }
    text = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return ScoreParts(
        folder=root / hashlib.sha256(text).hexdigest()[:32],
        slices=slices,
        feature_table_versions=feature_table_versions,
    )


def remove_abandoned(root: Path) -> None:
    """Remove the scorings to which no part was added for a week: nobody gave the command again."""
    for folder in root.iterdir() if root.is_dir() else ():
        # Another process may be removing it, its work done.
        with contextlib.suppress(FileNotFoundError):
            changed_s = max(path.stat().st_mtime for path in [folder, *folder.iterdir()])
            if time.time() - changed_s > _ABANDONED_S:
                shutil.rmtree(folder, ignore_errors=True)
