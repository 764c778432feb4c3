"""Holds the command line: every command has help, takes --json, and stands in docs/cli.md."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from penstock.cli.main import app
from real_data import REPO_ROOT


def leaves(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if children is None:
        return [(" ".join(path), command)]
    return [leaf for name, child in children.items() for leaf in leaves(child, (*path, name))]


COMMANDS = leaves(typer.main.get_command(app))


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
class TestEveryCommand:
    def test_says_what_it_is_for(self, name: str, command: Any):
        assert command.help, f"penstock {name} has no help"

    def test_says_what_each_parameter_is_for(self, name: str, command: Any):
        silent = [p.name for p in command.params if not getattr(p, "help", None)]
        assert silent == [], f"penstock {name}: {silent}"

    def test_takes_json(self, name: str, command: Any):
        assert any("--json" in p.opts for p in command.params), f"penstock {name}"

    def test_stands_in_the_docs(self, name: str, command: Any):
        assert f"`penstock {name}`" in (REPO_ROOT / "docs" / "cli.md").read_text("utf-8")


def test_the_docs_say_what_help_says():
    typer_command = str(Path(sys.executable).parent / "typer")
    made = subprocess.run(
        [typer_command, "penstock.cli.main", "utils", "docs", "--name", "penstock", "--title", "The penstock command"],
        cwd=REPO_ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert (REPO_ROOT / "docs" / "cli.md").read_text("utf-8").strip() == made.strip(), (
        "docs/cli.md is behind: run scripts/lint"
    )


def test_help_loads_nothing_heavy():
    """Time is not tested (machines differ); what costs it is."""
    code = (
        "import sys, penstock.cli.main; "
        "print(sorted({'ray','feast','mlflow','torch','polars','pandas','pyarrow','sklearn','deltalake','pydantic'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
