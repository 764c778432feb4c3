from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from penstock.cli.main import app
from penstock.settings import Settings

RunNoun = Callable[..., str]


@pytest.fixture
def empty_project(tmp_path, monkeypatch) -> Settings:
    """A project of the settings alone, which commands find."""
    (tmp_path / "pyproject.toml").write_text("[tool.penstock]\n")
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(tmp_path))
    return Settings(project_root=tmp_path, actor="ada")


@pytest.fixture
def run_in(empty_project: Settings) -> RunNoun:
    """Run `penstock NOUN …` on the empty project, in this process; gives what it wrote."""

    def invoke(noun: str, *arguments: str) -> str:
        done = CliRunner().invoke(app, [noun, *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return invoke
