import json
import shutil

import pytest
from typer.testing import CliRunner

from payments import build_features, commit_payments, payments_before_the_test, settings_in
from penstock.cli.feature_study import sparkline
from penstock.cli.main import app
from penstock.cluster import local
from penstock.errors import NotFoundError, UserError
from penstock.features.build import build
from penstock.features.store import apply
from projects import Project
from real_data import REPO_ROOT

TABLE = "card_fraud.terminal_windows"


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    build_features(settings_in(folder))
    return folder


@pytest.fixture
def run(storage, monkeypatch):
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(REPO_ROOT))
    monkeypatch.setenv("PENSTOCK_STORAGE__ROOT", str(storage))

    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["features", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    return invoke


class TestProfile:
    def test_it_shows_every_feature_table(self, run):
        shown = run("profile", "card_fraud")
        assert "card_fraud.customer_windows version 0: 600 rows" in shown
        assert "TERMINAL_ID_RISK_30DAY_WINDOW" in shown

    def test_it_writes_the_page_where_it_is_told_to(self, run, tmp_path):
        out = tmp_path / "pages" / "profile.html"
        assert f"written: {out}" in run("profile", "card_fraud", "--out", str(out))
        assert out.read_text().startswith("<!doctype html>")

    def test_its_json_says_what_has_moved(self, run):
        [found] = json.loads(run("profile", "card_fraud", "--table", TABLE, "--json"))
        assert found["table"]["version"] == 0
        assert {column["has_moved"] for column in found["columns"]} == {False}


class TestSelect:
    def test_what_is_wrong_is_told_before_a_job_starts(self, run, tmp_path):
        with pytest.raises(NotFoundError, match="feature service"):
            run("select", "card_fraud", "--service", "card_fraud_v9")
        inside = REPO_ROOT / "feature_repo" / "card_fraud" / "suggested.py"
        with pytest.raises(UserError, match="feast apply"):
            run("select", "card_fraud", "--write", str(inside))
        assert not inside.exists()

    @pytest.mark.ray
    def test_its_job_ranks_the_features_and_the_command_writes_the_suggestion(
        self, tmp_path, project, ray_cluster
    ):
        # A storage of its own, and in it what says where the shared Ray is.
        own = Project(storage=tmp_path / "storage")
        own.storage.mkdir()
        shutil.copy(local.state_path(project.settings), local.state_path(own.settings))
        commit_payments(own.settings, payments_before_the_test())
        build(own.settings, "card_fraud")
        apply(own.settings)
        out = tmp_path / "suggested.py"
        asked = ("features", "select", "card_fraud", "--folds", "2", "--write", str(out))
        done = own.must(*asked)
        assert done.stdout.splitlines()[1].split()[0] == "TX_AMOUNT"
        assert f"written: {out}" in done.stdout
        assert "FeatureService(" in out.read_text()


class TestSparkline:
    def test_it_is_tallest_where_most_rows_are_and_shows_the_few(self):
        assert sparkline((0, 1, 1000, 500)) == " ▁█▅"

    def test_many_bins_share_blocks(self):
        assert len(sparkline(tuple(range(1, 41)))) == 14

    def test_of_nothing_it_is_nothing(self):
        assert sparkline(()) == sparkline((0, 0)) == ""
