import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bundles import FEATURES, add_version, native_score
from penstock.errors import UserError
from penstock.registry.export import export
from penstock.registry.package import VerifiedPackage, verify
from penstock.settings import Settings


@pytest.fixture
def package(project: Settings) -> VerifiedPackage:
    add_version(project, "run-1")
    return verify(project.models_path / "spills/1", project)


@pytest.fixture
def folder(project: Settings, package: VerifiedPackage, tmp_path: Path) -> Path:
    export(project, package, tmp_path / "edge")
    return tmp_path / "edge"


def run(folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    # Isolated: of this project nothing is on the path but what is installed.
    return subprocess.run(
        [sys.executable, "-I", str(folder / "predict.py"), *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        check=False,
        cwd="/",
    )


def test_the_predictor_gives_the_test_vectors_scores(folder: Path):
    done = run(folder, "--check")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("16 rows, largest difference")


def test_another_graph_does_not_pass_the_check(folder: Path):
    vector = json.loads((folder / "test_vector.json").read_text())
    vector["scores"][3] += 0.001
    (folder / "test_vector.json").write_text(json.dumps(vector))
    assert run(folder, "--check").returncode == 1


def test_it_scores_rows_of_named_features_and_takes_absent_ones_as_missing(folder: Path):
    rows = [{"amount": 120.0, "count_7d": 3, "risk_7d": 0.5}, {"risk_7d": None}, {}]
    (folder / "rows.json").write_text(json.dumps(rows))
    missing = np.full(3, np.nan)
    expected = native_score(np.array([[120.0, 3.0, 0.5], missing, missing]))
    for done in (run(folder, str(folder / "rows.json")), run(folder, "-", stdin=json.dumps(rows))):
        assert json.loads(done.stdout) == pytest.approx(expected.tolist(), rel=1e-5)
    assert run(folder, "-", stdin="[]").stdout == "[]\n"


def test_a_feature_that_the_model_has_not_is_refused(folder: Path):
    done = run(folder, "-", stdin='[{"amout": 1}]')
    assert done.returncode == 1
    assert f"no features: ['amout']; there are {list(FEATURES)}" in done.stderr


def test_it_needs_onnxruntime_and_numpy_alone(folder: Path):
    tree = ast.parse((folder / "predict.py").read_text())
    roots = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    roots |= {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
    }
    assert roots - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}
    needed = [line.split("==")[0] for line in (folder / "requirements.txt").read_text().split()]
    assert needed == ["numpy", "onnxruntime"]
    assert len((folder / "predict.py").read_text().splitlines()) <= 60


def test_a_folder_that_holds_something_stays_as_it_is(project, package, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        export(project, package, tmp_path)
    assert [file.name for file in tmp_path.glob("*.py")] == []
