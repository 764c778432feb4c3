import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from penstock.cli.main import app

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    (tmp_path / "pyproject.toml").write_text("[tool.penstock]\n")
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(tmp_path))

    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["api-keys", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return invoke


def test_a_key_is_shown_once_listed_and_revoked(run: Run):
    assert "No key yet" in run("list")
    made = json.loads(run("create", "shop", "--scope", "predict:spills", "--days", "30", "--json"))
    key_id, _, secret = made["token"].partition(".")
    assert made["id"] == key_id
    assert "sha256" not in made
    text = run("list")
    assert "valid" in text
    assert secret not in text
    assert "is revoked" in run("revoke", key_id)
    assert json.loads(run("list", "--json"))[0]["revoked"] is not None
    assert "revoked" in run("list")


def test_that_nobody_asks_for_keys_yet_is_told(run: Run, monkeypatch):
    assert "set serving.require_key" in run("create", "shop", "--scope", "read")
    monkeypatch.setenv("PENSTOCK_SERVING__REQUIRE_KEY", "true")
    assert "set serving.require_key" not in run("create", "shop", "--scope", "read")
