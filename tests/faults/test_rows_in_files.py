"""Rows that memory cannot hold, with a limit on memory that the kernel keeps."""

import subprocess
import sys
from pathlib import Path

import pytest

from stored_sets import make_frame, store

NUM_ROWS = 1_000_000
"""As floats a matrix of these takes 40 MB; 60 with the scaled one beside it."""
ALLOWED_BYTES = 45 << 20
CHILD = """
import resource, sys
from pathlib import Path
import numpy as np, polars as pl
import penstock.training.folds
from penstock.features.training_set import TrainingSet, read_training_set
from penstock.training import preprocessing
from penstock.training.row_sources import HeldRows, PieceRows

made = TrainingSet.model_validate_json(Path(sys.argv[1]).read_bytes())
if sys.argv[2] == "files":
    rows = PieceRows.open(made, Path(sys.argv[3]), groups=[])
else:
    rows = HeldRows(read_training_set(made))
light = rows.light.sort(made.event_time)
[rows.matrix(light[:5000], feature_names=made.feature_names, side="training")]
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
now = int(status["VmData"].split()[0]) << 10
# Counts what nobody else may have: not the pages of a mapped file.
resource.setrlimit(resource.RLIMIT_DATA, (now + int(sys.argv[4]),) * 2)
features = rows.matrix(light, feature_names=made.feature_names, side="training")
scaling = preprocessing.fit(features, feature_names=made.feature_names)
scaled = rows.scaled(scaling, features)
print(len(scaled), float(np.asarray(scaled[:100_000], dtype=np.float64).sum()))
"""


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    made = store(make_frame(NUM_ROWS), folder, rows_per_file=1 << 18, rows_per_group=1 << 15)
    (folder / "record.json").write_text(made.model_dump_json())
    return folder / "record.json"


def laid_out(
    stored: Path, way: str, folder: Path, allowed_bytes: int
) -> subprocess.CompletedProcess:
    given = [str(stored), way, str(folder), str(allowed_bytes)]
    return subprocess.run(
        [sys.executable, "-c", CHILD, *given],
        capture_output=True,
        text=True,
        check=False,
        env={
            "POLARS_MAX_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "ARROW_DEFAULT_MEMORY_POOL": "system",
        },
    )


def test_they_are_laid_out_and_scaled_in_less_memory_than_they_take(stored, tmp_path):
    limited = laid_out(stored, "files", tmp_path, ALLOWED_BYTES)
    assert limited.returncode == 0, limited.stderr
    unlimited = laid_out(stored, "memory", tmp_path, 1 << 40)
    assert limited.stdout == unlimited.stdout
    assert limited.stdout.startswith(f"{NUM_ROWS} ")


def test_held_in_memory_they_break_that_limit(stored, tmp_path):
    """What the files are for: the same rows and the same limit without them."""
    assert laid_out(stored, "memory", tmp_path, ALLOWED_BYTES).returncode != 0
