import json

import pytest
from typer.testing import CliRunner

from payments import build_features, settings_in
from penstock.cli.feature_study import sparkline
from penstock.cli.main import app
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


class TestSparkline:
    def test_it_is_tallest_where_most_rows_are_and_shows_the_few(self):
        assert sparkline((0, 1, 1000, 500)) == " ▁█▅"

    def test_many_bins_share_blocks(self):
        assert len(sparkline(tuple(range(1, 41)))) == 14

    def test_of_nothing_it_is_nothing(self):
        assert sparkline(()) == sparkline((0, 0)) == ""
