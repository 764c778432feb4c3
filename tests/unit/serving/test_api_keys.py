from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import audit
from penstock.errors import IntegrityError, NotFoundError, RequestError, UserError
from penstock.serving import api_keys
from penstock.serving.api_keys import Gatekeeper, allows
from penstock.settings import Settings
from penstock.settings_sections import ServingSettings

PREDICT = "predict:spills"


@pytest.fixture
def project(tmp_path: Path) -> Settings:
    return Settings(project_root=tmp_path, serving=ServingSettings(require_key=True))


class Door:
    """A gatekeeper whose clock the test moves."""

    def __init__(self, settings: Settings) -> None:
        self.clock_s = 0.0
        self.now = datetime.now(UTC)
        self._keeper = Gatekeeper(settings, clock=lambda: self.clock_s, now=lambda: self.now)

    def status(self, token: str | None, wanted: str = PREDICT) -> int:
        headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
        return self.status_of(headers, wanted)

    def status_of(self, headers: list[tuple[bytes, bytes]], wanted: str = PREDICT) -> int:
        try:
            self._keeper.check(headers, wanted)
        except RequestError as error:
            return error.status
        return 200


@pytest.fixture
def door(project: Settings) -> Door:
    return Door(project)


def make(
    project: Settings, *scopes: str, valid_for: timedelta | None = None, **limits: float
) -> str:
    return api_keys.create(project, "tests", scopes or (PREDICT,), valid_for=valid_for, **limits)[1]


class TestCreate:
    def test_no_secret_is_kept_anywhere(self, project: Settings):
        token = make(project)
        secret = token.partition(".")[2]
        files = [file for file in project.storage_path.rglob("*") if file.is_file()]
        assert files
        assert not any(secret.encode() in file.read_bytes() for file in files)

    def test_only_its_owner_reads_the_file(self, project: Settings):
        make(project)
        file = api_keys.keys_file(project)
        assert oct(file.stat().st_mode & 0o777) == "0o600"
        assert oct(file.parent.stat().st_mode & 0o777) == "0o700"

    @pytest.mark.parametrize("scopes", [(), ("predict",), ("predict:Spills",), ("read", "root")])
    def test_a_scope_that_is_none_is_refused(self, project: Settings, scopes):
        with pytest.raises(UserError, match="predict:<model>"):
            api_keys.create(project, "tests", scopes, valid_for=None)

    @pytest.mark.parametrize("name", ["", "a\nb", "x" * 101])
    def test_a_name_that_is_none_is_refused(self, project: Settings, name):
        with pytest.raises(UserError, match="cannot be named"):
            api_keys.create(project, name, [PREDICT], valid_for=None)

    def test_making_and_revoking_are_in_the_audit_log(self, project: Settings):
        key, _ = api_keys.create(project, "shop", [PREDICT], valid_for=None)
        api_keys.revoke(project, key.id)
        api_keys.revoke(project, key.id)
        told = [(record.action, record.subject) for record in audit.records(project)]
        assert told == [("api_key.create", key.id), ("api_key.revoke", key.id)]


class TestGatekeeper:
    def test_a_key_opens_what_its_scopes_say(self, project: Settings, door: Door):
        token = make(project)
        assert door.status(token) == 200
        assert door.status(token, "predict:floods") == 403
        assert door.status(token, "read") == 403

    @pytest.mark.parametrize("change", ["", "x", ".", "x.y"])
    def test_without_a_valid_key_nobody_passes(self, project: Settings, door: Door, change):
        token = make(project)
        assert door.status(None) == 401
        assert door.status(change) == 401
        assert door.status(token + "x") == 401
        assert door.status(token.partition(".")[0] + "." + change) == 401

    def test_it_may_come_as_x_api_key_and_only_as_a_bearer(self, project: Settings, door: Door):
        token = make(project).encode()
        assert door.status_of([(b"x-api-key", token)]) == 200
        assert door.status_of([(b"authorization", b"bearer  " + token)]) == 200
        assert door.status_of([(b"authorization", b"Basic " + token)]) == 401
        assert door.status_of([(b"authorization", token)]) == 401

    def test_a_revoked_key_is_refused_within_a_second(self, project: Settings, door: Door):
        token = make(project)
        assert door.status(token) == 200
        api_keys.revoke(project, token.partition(".")[0])
        door.clock_s += 1.0
        assert door.status(token) == 401

    def test_a_key_that_is_made_later_is_known_almost_at_once(self, project, door):
        assert door.status("a.b") == 401
        token = make(project)
        door.clock_s += 0.05
        assert door.status(token) == 200

    def test_an_expired_key_is_refused_also_where_it_was_let_in_before(self, project, door):
        token = make(project, valid_for=timedelta(days=1))
        assert door.status(token) == 200
        door.now += timedelta(days=1, seconds=1)
        assert door.status(token) == 401

    def test_beyond_its_rate_a_key_is_told_to_wait_and_others_are_not(self, project, door):
        token, other = make(project, max_requests_per_s=2.0), make(project)
        assert [door.status(token) for _ in range(3)] == [200, 200, 429]
        assert door.status(other) == 200
        door.clock_s += 0.5
        assert [door.status(token) for _ in range(2)] == [200, 429]

    def test_a_damaged_file_lets_nobody_in_until_it_is_restored(self, project, door):
        token = make(project)
        assert door.status(token) == 200
        file = api_keys.keys_file(project)
        content = file.read_bytes()
        file.write_bytes(content[:-10])
        door.clock_s += 1.0
        assert door.status(token) == 401
        with pytest.raises(IntegrityError, match="no key opens anything"):
            api_keys.list_keys(project)
        file.write_bytes(content)
        door.clock_s += 1.0
        assert door.status(token) == 200

    def test_where_no_key_is_asked_for_everybody_passes(self, tmp_path: Path):
        assert Door(Settings(project_root=tmp_path)).status(None) == 200


class TestAllows:
    @pytest.mark.parametrize("wanted", ["predict:spills", "push:dam.readings", "feedback", "read"])
    def test_admin_opens_all(self, wanted: str):
        assert allows(["admin"], wanted)

    @given(
        st.sampled_from(["predict", "push"]),
        st.text("abz_", min_size=1),
        st.text("abz_", min_size=1),
    )
    def test_a_name_opens_itself_and_a_star_opens_its_kind_alone(self, kind, name, other):
        other_kind = "push" if kind == "predict" else "predict"
        assert allows([f"{kind}:{name}"], f"{kind}:{name}")
        assert allows([f"{kind}:*"], f"{kind}:{name}")
        assert allows([f"{kind}:{name}"], f"{kind}:{other}") == (name == other)
        assert not allows([f"{kind}:*", f"{kind}:{name}"], f"{other_kind}:{name}")
        assert not allows([f"{kind}:*"], "read")
        assert not allows([f"{kind}:*", "read"], "feedback")


class TestOwnToken:
    def test_commands_have_a_key_of_their_own_that_opens_all(self, project: Settings, door: Door):
        token = api_keys.own_token(project)
        assert door.status(token) == 200
        assert door.status(token, "read") == 200
        assert api_keys.own_token(project) == token
        assert len(api_keys.list_keys(project)) == 1

    def test_where_no_key_is_asked_for_there_is_none(self, tmp_path: Path):
        settings = Settings(project_root=tmp_path)
        assert api_keys.own_token(settings) == ""
        assert not api_keys.keys_file(settings).exists()

    def test_the_one_of_the_settings_goes_first(self, tmp_path: Path):
        serving = ServingSettings(require_key=True, api_key="a.b")
        assert api_keys.own_token(Settings(project_root=tmp_path, serving=serving)) == "a.b"


def test_an_unknown_key_cannot_be_revoked(project: Settings):
    with pytest.raises(NotFoundError, match="no API key named 'beef'"):
        api_keys.revoke(project, "beef")
