import re
from collections.abc import Callable
from pathlib import Path

import pytest

import penstock
from penstock.access_settings import AccessSettings
from penstock.errors import ForbiddenError
from penstock.registry import approval, key_ring, promotion
from penstock.roles import ACTIONS, ROLES, SCOPES, check_may, role_of
from penstock.serving import api_keys, deploy, way_back
from penstock.serving.api_keys import _SCOPE
from penstock.settings import Settings

SOURCES = Path(penstock.__file__).parent


class TestTable:
    def test_every_role_opens_scopes_that_keys_know(self):
        assert set(SCOPES) == set(ROLES)
        assert all(_SCOPE.fullmatch(scope) for scopes in SCOPES.values() for scope in scopes)

    def test_an_admin_may_everything_and_a_viewer_changes_nothing(self):
        assert all("admin" in roles for roles in ACTIONS.values())
        assert not any("viewer" in roles for roles in ACTIONS.values())
        assert SCOPES["viewer"] == ("read",)

    def test_only_an_admins_scopes_open_all(self):
        assert [role for role in ROLES if "admin" in SCOPES[role]] == ["admin"]

    def test_every_action_is_asked_for_somewhere(self):
        text = "".join(file.read_text() for file in SOURCES.rglob("*.py"))
        asked = set(re.findall(r'check_may\((?:self\.)?_?settings, "([a-z ]+)"\)', text))
        assert asked == set(ACTIONS)


class TestRoleOf:
    def test_where_nothing_is_declared_everybody_is_an_admin(self):
        assert role_of("anybody@host", {}) == "admin"

    def test_the_whole_name_goes_before_the_users(self):
        declared = {"alice": "operator", "alice@laptop": "viewer"}
        assert role_of("alice@server", declared) == "operator"
        assert role_of("alice@laptop", declared) == "viewer"
        assert role_of("alice", declared) == "operator"

    @pytest.mark.parametrize("actor", ["bob@host", "", "@", "alicex", "xalice@host", "Alice"])
    def test_who_is_not_named_is_a_viewer(self, actor: str):
        assert role_of(actor, {"alice": "admin"}) == "viewer"


def test_who_may_not_is_told_who_may(tmp_path: Path):
    access = AccessSettings(roles={"alice": "operator", "bob": "approver"})
    alice = Settings(project_root=tmp_path, access=access, actor="alice@laptop")
    check_may(alice, "deploy")
    with pytest.raises(
        ForbiddenError, match=r"alice@laptop is operator.*may not approve"
    ) as caught:
        check_may(alice, "approve")
    assert caught.value.exit_code == 77
    assert "approver or admin" in str(caught.value)


VIEWER = AccessSettings(roles={"alice": "viewer"})


@pytest.mark.parametrize(
    "change",
    [
        lambda mine: promotion.promote(mine, "spills", 1, expected=None),
        lambda mine: promotion.rollback(mine, "spills", expected=None, reason="none"),
        lambda mine: approval.approve(mine, "spills", 1, reason="none"),
        lambda mine: key_ring.rotate(mine),
        lambda mine: key_ring.trust(mine, Path("none")),
        lambda mine: key_ring.distrust(mine, "none"),
        lambda mine: deploy.held(mine, "spills").__enter__(),
        lambda mine: deploy.undeploy(mine, "spills"),
        lambda mine: way_back.roll_back(mine, "spills", reason="none", report=print),
        lambda mine: api_keys.create(mine, "shop", ["admin"], valid_for=None),
        lambda mine: api_keys.revoke(mine, "none"),
    ],
)
def test_who_may_not_changes_nothing(tmp_path: Path, change: Callable[[Settings], object]):
    mine = Settings(project_root=tmp_path, access=VIEWER, actor="alice")
    with pytest.raises(ForbiddenError):
        change(mine)
    assert list(tmp_path.iterdir()) == []


def test_a_deploy_of_an_operator_has_its_own_key_all_the_same(tmp_path: Path):
    mine = Settings(
        project_root=tmp_path, access=VIEWER, actor="alice", serving={"require_key": True}
    )
    assert api_keys.own_token(mine)
