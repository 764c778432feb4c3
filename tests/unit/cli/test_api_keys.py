import json
from collections.abc import Callable
from functools import partial

import pytest

from projects import Project

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


def test_a_role_gives_its_scopes_beside_others(run: Run):
    asked = ("create", "shift", "--role", "viewer", "--scope", "predict:spills", "--json")
    assert json.loads(run(*asked))["scopes"] == ["read", "predict:spills"]


def test_a_key_that_opens_nothing_is_refused(project: Project):
    done = project.run("api-keys", "create", "shop")
    assert done.code == 2
    assert "no scope" in done.stderr


def test_a_role_that_is_none_is_told_the_nearest(project: Project):
    done = project.run("api-keys", "create", "shop", "--role", "operators")
    assert done.code == 2
    assert "did you mean 'operator'?" in done.stderr


def test_who_may_not_make_keys_is_told_who_may(project: Project):
    roles = {"PENSTOCK_ACCESS__ROLES": '{"alice": "operator"}', "PENSTOCK_ACTOR": "alice@laptop"}
    done = project.run("api-keys", "create", "shop", "--scope", "read", **roles)
    assert done.code == 77
    assert "alice@laptop is operator, who may not manage keys. Allowed: admin" in done.stderr
