"""Holds the layout: what may not drift without somebody noticing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from real_data import REPO_ROOT

PACKAGE = REPO_ROOT / "platform" / "penstock"
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")
# One door per vendor: whoever else imports it walks around the door's checks.
DOORS = {
    "deltalake": {"data/tables.py"},
    "feast": {"features/"},
    "mlflow": {"training/tracking.py", "registry/versions.py"},
    # What is exported runs where there is no Penstock.
    # Its quantiser is a tool of its own, for registrations alone.
    "onnxruntime": {"scorer.py", "registry/edge/predict.py", "registry/int8_graph.py"},
}


def imported_roots(file: Path) -> set[str]:
    roots: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.split(".")[0])
    return roots


def uses_of_the_environment(code: str) -> Iterator[str]:
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    tree = ast.parse(code)
    modules = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "os"
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in modules and node.attr in names:
                yield f"line {node.lineno}: {node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.module == "os":
            yield from (f"line {node.lineno}: {a.name}" for a in node.names if a.name in names)


def relative(file: Path) -> str:
    return file.relative_to(PACKAGE).as_posix()


class TestLayout:
    def test_platform_is_a_source_root_and_no_package(self):
        # With an __init__.py the folder would shadow the standard library's platform module.
        assert not (REPO_ROOT / "platform" / "__init__.py").exists()
        assert [p.name for p in (REPO_ROOT / "platform").glob("*.py")] == []

    def test_the_top_level_holds_what_the_readme_draws(self):
        expected = {
            "pyproject.toml", "README.md", "cluster.yaml", "platform", "jobs", "serve_apps",
            "feature_repo", "tests", "scripts", "benchmarks", "docs", "constraints.txt",
            "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md",
        }  # fmt: skip
        tracked = subprocess.run(
            ["git", "ls-files"], cwd=REPO_ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        top = {line.split("/")[0] for line in tracked} - {".gitignore", ".ci"}
        assert top == expected

    def test_imports_point_up_the_river(self):
        command = [str(Path(sys.executable).parent / "lint-imports"), "--no-logo"]
        done = subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize("folder", ["unit"])
    def test_unit_tests_mirror_the_package(self, folder: str):
        tests = REPO_ROOT / "tests" / folder
        strays = [
            str(test.relative_to(tests))
            for test in tests.rglob("test_*.py")
            if not any(
                (
                    base / test.relative_to(tests).parent / f"{test.stem.removeprefix('test_')}.py"
                ).is_file()
                for base in (PACKAGE, REPO_ROOT / "feature_repo")
            )
        ]
        assert strays == []


class TestDoors:
    @pytest.mark.parametrize("file", MODULES, ids=relative)
    def test_a_vendor_is_imported_at_its_door_only(self, file: Path):
        here = relative(file)
        for vendor in imported_roots(file) & DOORS.keys():
            assert any(here == door or (here.startswith(door) and door.endswith("/"))
                       for door in DOORS[vendor]), f"{here} imports {vendor}"  # fmt: skip

    @pytest.mark.parametrize("file", MODULES, ids=relative)
    def test_the_environment_is_read_in_settings_only(self, file: Path):
        if relative(file) == "settings.py":
            return
        assert list(uses_of_the_environment(file.read_text("utf-8"))) == []

    @pytest.mark.parametrize(
        "code",
        [
            "import os\nos.environ['X']",
            "import os as o\nfor name in o.environ: pass",
            "import os\nos.environ['X'] = '1'",
            "import os\nx = os.getenvb",
            "from os import environ",
            "from os import getenv as g",
        ],
    )
    def test_no_way_to_it_is_overlooked(self, code: str):
        assert list(uses_of_the_environment(code)) != []

    @pytest.mark.parametrize("file", MODULES, ids=relative)
    def test_the_library_knows_no_use_case(self, file: Path):
        names = [p.name for p in (REPO_ROOT / "feature_repo").iterdir() if p.is_dir()]
        names = [name for name in names if not name.startswith("_")]
        code = ast.unparse(_without_docstrings(ast.parse(file.read_text("utf-8"))))
        found = [n for n in (*names, "CUSTOMER_ID", "TERMINAL_ID", "TX_") if n in code]
        assert found == []

    @pytest.mark.parametrize("file", MODULES, ids=relative)
    def test_a_file_stays_small(self, file: Path):
        num_lines = len(file.read_text("utf-8").splitlines())
        assert num_lines <= 400, f"{relative(file)} has {num_lines} lines: what moved in?"

    @pytest.mark.parametrize("file", MODULES, ids=relative)
    def test_nothing_is_pickled(self, file: Path):
        assert imported_roots(file).isdisjoint({"pickle", "cPickle", "dill", "joblib", "shelve"})


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and (
            node.body
            and isinstance(node.body[0], ast.Expr)
            and isinstance(node.body[0].value, ast.Constant)
        ):
            node.body[0].value.value = ""
    return tree


class TestText:
    def test_no_text_names_a_folder_of_one_machine(self):
        listed = subprocess.run(
            ["git", "grep", "-nIE", r"(^|[^a-z.])/(work|root|home/[a-z]+)/", "--", ":!LICENSE",
             ":!constraints.txt", ":!tests/rules/test_layout.py"],
            cwd=REPO_ROOT, capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        assert listed == ""

    def test_every_decision_is_listed(self):
        folder = REPO_ROOT / "docs" / "decisions"
        index = (folder / "README.md").read_text("utf-8")
        missing = [p.name for p in folder.glob("[0-9]*.md") if p.name not in index]
        assert missing == []
