from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from bundles import add_version, empty_tracking_database, new_project
from penstock.cli.main import app
from penstock.errors import BusyError, GateRefusedError, IntegrityError, NotFoundError, UserError
from penstock.settings import Settings

Run = Callable[..., str]


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_tracking_database(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def project(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Version 1 was trained first; version 2 is better, and the challenger."""
    (tmp_path / "pyproject.toml").write_text("[tool.penstock]\n")
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(tmp_path))
    settings = new_project(tmp_path, empty_database)
    add_version(settings, "run-1", average_precision=0.6)
    add_version(settings, "run-2", average_precision=0.65)
    return settings


@pytest.fixture
def run(project: Settings) -> Run:
    """Run `penstock models …` in this process; gives what it wrote."""

    def invoke(*arguments: object) -> str:
        done = CliRunner().invoke(app, ["models", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return invoke


def as_json(text: str) -> dict:
    return orjson.loads(text)


class TestList:
    def test_every_version_is_listed_with_its_aliases_and_the_gates_metric(self, run: Run):
        listed = orjson.loads(run("list", "--json"))
        assert [(v["version"], v["aliases"]) for v in listed] == [(1, []), (2, ["challenger"])]
        text = run("list", "spills")
        assert "average_precision" in text
        assert "0.6500" in text
        assert "roc_auc" not in text

    def test_before_any_training_the_next_step_is_told(
        self, tmp_path_factory, empty_database: Path, monkeypatch, run: Run
    ):
        root = tmp_path_factory.mktemp("nothing")
        (root / "pyproject.toml").write_text("[tool.penstock]\n")
        monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(root))
        new_project(root, empty_database)
        assert "penstock train" in run("list")


class TestShow:
    def test_the_champion_is_shown_with_its_moves_and_card(self, run: Run):
        run("promote", "spills", 1)
        shown = as_json(run("show", "spills", "--json"))
        assert (shown["version"], shown["training"]["run_id"]) == (1, "run-1")
        assert [move["to_version"] for move in shown["moves"]] == [1]
        assert "moves of the champion" in run("show", "spills")

    def test_without_a_champion_the_way_to_one_is_told(self, run: Run):
        with pytest.raises(NotFoundError, match="penstock models promote spills"):
            run("show", "spills")

    def test_a_spoiled_version_is_not_shown_as_if_it_were_whole(self, run: Run, project: Settings):
        (project.models_path / "spills/2/card.md").write_text("# all is well")
        with pytest.raises(IntegrityError, match=r"card\.md"):
            run("show", "spills", 2)


class TestCompare:
    def test_the_challenger_stands_beside_the_champion_with_what_the_gate_says(self, run: Run):
        run("promote", "spills", 1)
        found = as_json(run("compare", "spills", "--json"))
        assert found["decision"]["passed"]
        assert (found["champion"]["version"], found["challenger"]["version"]) == (1, 2)
        text = run("compare", "spills")
        assert "+0.0500" in text
        assert "the gate says yes" in text


class TestPromote:
    def test_who_looked_at_another_champion_is_told_so(self, run: Run):
        run("promote", "spills", 1, "--expect", 0)
        with pytest.raises(BusyError, match="no longer none"):
            run("promote", "spills", 2, "--expect", 0)

    def test_against_the_gate_a_reason_is_needed_and_kept(self, run: Run):
        run("promote", "spills")
        with pytest.raises(UserError, match="older than the champion"):
            run("promote", "spills", 1, "--force", "2 has a bug")
        older = ("promote", "spills", 1, "--downgrade")
        with pytest.raises(GateRefusedError, match="a gain of"):
            run(*older)
        with pytest.raises(UserError, match="needs a reason"):
            run(*older, "--force", " ")
        assert "2 has a bug" in run(*older, "--force", "2 has a bug")

    def test_an_approval_is_of_the_challenger_where_no_version_is_named(self, run: Run):
        assert "version 2 is approved by" in run("approve", "spills", "--reason", "slices")
        assert as_json(run("approve", "spills", 1, "--json"))["reason"] == "by hand"


class TestRollback:
    def test_the_champion_before_is_champion_again(self, run: Run):
        run("promote", "spills", 1)
        run("promote", "spills", 2)
        assert "version 1 is champion (was version 2). alerts" in run(
            "rollback", "spills", "--reason", "alerts"
        )
        with pytest.raises(NotFoundError, match="no champion before version 1"):
            run("rollback", "spills")


class TestVerify:
    def test_every_version_is_counted_file_by_file(self, run: Run):
        checked = orjson.loads(run("verify", "spills", "--json"))
        assert [(item["version"], item["num_files"]) for item in checked] == [(1, 7), (2, 7)]
        assert "version 2: 7 files" in run("verify", "spills", 2)

    def test_a_changed_byte_is_found(self, run: Run, project: Settings):
        file = project.models_path / "spills/1/native/linear.json"
        file.write_bytes(file.read_bytes().replace(b"0.7", b"0.8"))
        assert "intact" in run("verify", "spills", 2)
        with pytest.raises(IntegrityError, match=r"native/linear\.json"):
            run("verify", "spills")


@pytest.mark.parametrize("command", ["show", "compare", "promote", "rollback", "verify"])
def test_a_name_that_no_model_has_is_the_users_mistake(run: Run, command: str):
    for name in ("spill", "a/b", "", "x:y", "../x"):
        with pytest.raises(NotFoundError, match="spills") as caught:
            run(command, name)
        assert caught.value.exit_code == 2


class TestCard:
    def test_the_signed_card_is_written_and_a_page_made_of_it(self, run: Run, tmp_path: Path):
        written = as_json(run("card", "spills", "--version", 2, "--out", tmp_path / "c", "--json"))
        markdown, page = map(Path, written["files"])
        assert (markdown.name, page.name) == ("spills-2.md", "spills-2.html")
        assert markdown.read_text() == "# card"
        assert "aliases: challenger" in page.read_text()

    def test_a_card_that_is_not_the_signed_one_is_not_shown(self, run: Run, project: Settings):
        (project.models_path / "spills/2/card.md").write_text("# all is well")
        with pytest.raises(IntegrityError, match=r"card\.md"):
            run("card", "spills", "--version", 2)
