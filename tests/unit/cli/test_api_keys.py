import json
from collections.abc import Callable
from functools import partial

import pytest

Run = Callable[..., str]


@pytest.fixture
def run(run_in) -> Run:
    return partial(run_in, "api-keys")


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
