import subprocess
import sys
from pathlib import Path

import pytest

from penstock.cli.init import write_skeleton
from penstock.errors import UserError

USE_IT = """
import sys
from pathlib import Path
from penstock.data.contracts import load_tables
from penstock.features.declarations import load_feature_tables
from penstock.settings import Settings
from penstock.training.declarations import load_model
from penstock.use_cases import import_declarations
settings = Settings(project_root=Path(sys.argv[1]))
model = load_model(settings, "churn")
assert list(load_tables(settings, "churn"))
assert load_feature_tables(settings, "churn")
service = import_declarations(settings, "churn", "services").churn_v1
assert model.feature_service == service.name
"""


class TestWriteSkeleton:
    def test_what_it_writes_can_be_loaded_by_every_room(self, tmp_path: Path):
        write_skeleton(tmp_path / "feature_repo", "churn", "subscriber")
        done = subprocess.run(
            [sys.executable, "-c", USE_IT, str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def test_an_existing_use_case_is_left_alone(self, tmp_path: Path):
        folder = write_skeleton(tmp_path, "churn", "user")
        (folder / "model.py").write_text("mine")
        with pytest.raises(UserError, match="exists already"):
            write_skeleton(tmp_path, "churn", "user")
        assert (folder / "model.py").read_text() == "mine"

    @pytest.mark.parametrize("name", ["", "Churn", "a-b", "../x", "class", "1st", "a b", "a" * 70])
    def test_a_name_that_is_no_identifier_is_refused_and_nothing_written(self, tmp_path, name):
        with pytest.raises(UserError, match="cannot be a name"):
            write_skeleton(tmp_path, name, "user")
        assert list(tmp_path.iterdir()) == []
