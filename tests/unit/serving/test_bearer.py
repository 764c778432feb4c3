import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from issuer import AUDIENCE, ISSUER, Issuer, jwk, private_key, running_issuer, token
from penstock.access_settings import JwtSettings
from penstock.errors import RequestError
from penstock.serving import api_keys, bearer
from penstock.serving.api_keys import Gatekeeper
from penstock.settings import Settings
from penstock.settings_sections import ServingSettings
from waiting import wait_for

PREDICT = "predict:spills"


class Door:
    """A gatekeeper that takes tokens; the test moves the clock by which known ones expire."""

    def __init__(self, folder: Path, issuer: Issuer, **more: object) -> None:
        mine = JwtSettings(issuer=ISSUER, audience=AUDIENCE, jwks_url=issuer.url, **more)
        self.settings = Settings(
            project_root=folder, serving=ServingSettings(require_key=True, jwt=mine)
        )
        self.keeper = Gatekeeper(self.settings)
        assert self.keeper._bearers is not None
        self.bearers = self.keeper._bearers
        self.source = self.bearers._source
        self.source._gap_s = 0.05
        wait_for(lambda: self.source.current() is not None)

    def ask(self, text: str, wanted: str = PREDICT) -> tuple[int, str]:
        try:
            headers = [(b"authorization", b"Bearer " + text.encode("latin-1"))]
            return 200, str(self.keeper.check(headers, wanted))
        except RequestError as error:
            return error.status, error.message

    def status(self, text: str, wanted: str = PREDICT) -> int:
        return self.ask(text, wanted)[0]


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with running_issuer(jwk("a"), jwk("r", "RS256"), jwk("e", "EdDSA")) as running:
        yield running


@pytest.fixture(scope="module")
def door(issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    made = Door(tmp_path_factory.mktemp("door"), issuer)
    yield made
    made.source.close()


def parts(**header: object) -> list[str]:
    """A good token's three parts, its header changed."""
    head, *rest = token().split(".")
    whole = json.loads(base64.urlsafe_b64decode(head + "==")) | header
    return [written(whole), *rest]


def written(document: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


class TestVerification:
    @pytest.mark.parametrize(("kid", "algorithm"), [("a", "ES256"), ("r", "RS256"), ("e", "EdDSA")])
    def test_a_good_token_opens_what_its_scopes_say(self, door: Door, kid: str, algorithm: str):
        good = token(kid, algorithm)
        assert door.ask(good) == (200, "jwt:alice")
        assert door.status(good, "predict:floods") == 403
        assert door.status(good, "admin") == 403

    @pytest.mark.parametrize(
        ("claims", "why"),
        [
            ({"iss": "https://evil.example"}, "of another issuer"),
            ({"aud": "somebody"}, "for another audience"),
            ({"exp": int(time.time()) - 60}, "expired"),
            # A day: the run that collects these may come to them much later.
            ({"nbf": int(time.time()) + 86_400}, "not valid yet"),
            ({"iat": int(time.time()) + 86_400}, "not valid yet"),
            ({"exp": "soon"}, "not valid"),
            ({"sub": ""}, "without a subject"),
            ({"sub": 7}, "not valid"),
            ({"sub": "x" * 201}, "without a subject"),
            *(({name: None}, f"without {name}") for name in ("iss", "aud", "sub", "exp")),
        ],
    )
    def test_claims_that_do_not_fit_are_refused(self, door: Door, claims: dict, why: str):
        status, message = door.ask(token(**claims))
        assert (status, message) == (401, f"this token is {why}")

    def test_a_token_of_several_audiences_is_taken(self, door: Door):
        assert door.status(token(aud=["somebody", AUDIENCE])) == 200

    @pytest.mark.parametrize("name", ["none", "None", "NONE", "", "HS256", "PS256", "RS512", None])
    def test_another_algorithm_in_the_header_is_refused(self, door: Door, name: str | None):
        head, claims, signature = parts(alg=name)
        assert door.status(f"{head}.{claims}.{signature}") == 401
        assert door.status(f"{head}.{claims}.") == 401

    def test_a_token_without_a_signature_is_refused(self, door: Door):
        unsigned = jwt.encode(
            jwt.decode(token(), options={"verify_signature": False}), None, "none"
        )
        assert door.status(unsigned) == 401

    @pytest.mark.parametrize(("kid", "algorithm"), [("a", "ES256"), ("r", "RS256")])
    def test_the_public_key_is_no_secret_to_sign_with(self, door: Door, kid: str, algorithm: str):
        import hashlib
        import hmac

        public = private_key(kid, algorithm).public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        for name in ("HS256", algorithm):
            head, claims, _ = parts(alg=name, kid=kid)
            made = hmac.new(pem, f"{head}.{claims}".encode(), hashlib.sha256).digest()
            signature = base64.urlsafe_b64encode(made).decode().rstrip("=")
            assert door.status(f"{head}.{claims}.{signature}") == 401

    def test_a_key_signs_with_its_own_algorithm_alone(self, door: Door):
        forged = jwt.encode({"sub": "x"}, private_key("r", "RS256"), "PS256", headers={"kid": "r"})
        assert door.status(forged) == 401
        head, claims, signature = parts(alg="RS256")
        assert door.status(f"{head}.{claims}.{signature}") == 401

    def test_anothers_key_under_a_known_name_is_refused(self, door: Door):
        assert door.status(token("a", key=private_key("other", "ES256"))) == 401

    @pytest.mark.parametrize("header", [{"crit": ["b64"]}, {"kid": None}, {"kid": ["a"]}, {"jwk": jwk("z"), "kid": "z"}, {"jku": "https://evil.example", "kid": "z"}])  # fmt: skip
    def test_a_header_that_wants_more_is_refused(self, door: Door, header: dict):
        assert door.status(".".join(parts(**header))) == 401

    def test_an_endless_token_is_refused_before_it_is_read(self, door: Door):
        assert door.ask(token(more="x" * 9_000)) == (401, "this token is too long")

    @settings(
        max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def test_a_token_that_was_tampered_with_opens_nothing(self, door: Door, data: st.DataObject):
        good = token("a", exp=4_000_000_000)
        place = data.draw(st.integers(0, len(good) - 1))
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=\xff\x00"
        letters = data.draw(st.text(alphabet, max_size=3))
        length = data.draw(st.integers(0, 3))
        bad = good[:place] + letters + good[place + length :]
        assume(bad.split(".")[:2] != good.split(".")[:2] or _signature(bad) != _signature(good))
        assert door.status(bad) == 401

    @settings(max_examples=200, deadline=None)
    @given(text=st.text(st.characters(max_codepoint=255), max_size=60))
    def test_strangers_bytes_are_a_401(self, door: Door, text: str):
        assert door.status(f"{text}.{text}.{text}") == 401


def _signature(text: str) -> bytes | str:
    """What the last part says: base64 can spell the same bytes in several ways."""
    last = text.rpartition(".")[2]
    try:
        return base64.urlsafe_b64decode(last.rstrip("=") + "=" * (-len(last.rstrip("=")) % 4))
    except ValueError:
        return last


class TestScopes:
    @pytest.mark.parametrize(
        ("claims", "wanted", "status"),
        [
            ({"scope": "openid profile"}, "read", 403),
            ({"scope": "read"}, "read", 200),
            ({"scope": ["read", 7]}, "read", 200),
            ({"scope": None, "scp": ["predict:*"]}, PREDICT, 200),
            ({"scope": None, "scp": "predict:*"}, PREDICT, 200),
            ({"scope": None}, PREDICT, 403),
            ({"scope": {"read": 1}}, "read", 403),
            ({"scope": None, "roles": ["viewer"]}, "read", 200),
            ({"scope": None, "roles": ["viewer"]}, PREDICT, 403),
            ({"scope": None, "roles": "operator"}, "push:shop.payments", 200),
            ({"scope": None, "roles": ["Admin", "administrator"]}, "read", 403),
            ({"scope": None, "roles": ["admin"]}, "push:shop.payments", 200),
        ],
    )
    def test_scopes_and_roles_open_what_they_name(self, door, claims, wanted, status):
        assert door.status(token(**claims), wanted) == status

    def test_the_claim_of_roles_may_lie_deeper(self, issuer: Issuer, tmp_path: Path):
        door = Door(tmp_path, issuer, roles_claim="realm_access.roles")
        try:
            assert door.status(token(scope=None, realm_access={"roles": ["viewer"]}), "read") == 200
            assert door.status(token(scope=None, realm_access=["viewer"]), "read") == 403
            assert door.status(token(scope=None, roles=["admin"]), "read") == 403
            plain = token(scope=None, **{"realm_access.roles": ["viewer"]})
            assert door.status(plain, "read") == 200
        finally:
            door.source.close()


class TestGatekeeper:
    def test_api_keys_open_beside_tokens(self, door: Door):
        _, key = api_keys.create(door.settings, "tests", [PREDICT], valid_for=None)
        assert door.status(key) == 200

    def test_a_token_opens_nothing_where_none_are_taken(self, tmp_path: Path):
        keeper = Gatekeeper(
            Settings(project_root=tmp_path, serving=ServingSettings(require_key=True))
        )
        with pytest.raises(RequestError) as caught:
            keeper.check([(b"authorization", f"Bearer {token()}".encode())], PREDICT)
        assert caught.value.status == 401

    def test_a_known_token_is_not_verified_again_and_still_expires(
        self, door: Door, monkeypatch: pytest.MonkeyPatch
    ):
        good = token(sub="known")
        assert door.status(good) == 200
        monkeypatch.setattr(bearer.jwt, "decode", lambda *_, **__: pytest.fail("verified again"))
        assert door.status(good) == 200
        monkeypatch.setattr(door.bearers, "_now_s", lambda: time.time() + 311)
        assert door.ask(good) == (401, "this token is expired")

    def test_known_tokens_are_bounded(self, door: Door, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(bearer, "_MAX_KNOWN", 3)
        door.bearers._known.clear()
        for number in range(5):
            assert door.status(token(sub=f"user {number}")) == 200
        assert [visitor.id for visitor in door.bearers._known.values()] == [
            "jwt:user 2",
            "jwt:user 3",
            "jwt:user 4",
        ]

    def test_a_rate_is_of_one_subject_whatever_tokens_it_has(self, issuer: Issuer, tmp_path: Path):
        door = Door(tmp_path, issuer, max_requests_per_s=2.0)
        try:
            asked = [door.status(token(jti=str(number))) for number in range(3)]
            assert asked == [200, 200, 429]
            assert door.status(token(sub="bob")) == 200
        finally:
            door.source.close()

    def test_a_new_key_opens_and_an_old_one_does_not(self, tmp_path: Path):
        with running_issuer(jwk("old")) as issuer:
            door = Door(tmp_path, issuer)
            try:
                old, new = token("old"), token("new")
                assert door.status(old) == 200
                issuer.keys = [jwk("new")]
                assert door.ask(new) == (401, "this token is signed with a key that is not known")
                # The background has been told.
                wait_for(lambda: door.status(new) == 200)
                assert door.status(old) == 401
            finally:
                door.source.close()

    def test_without_any_key_of_the_issuer_nobody_can_say(self, door, monkeypatch):
        good = token()
        assert door.status(good) == 200
        monkeypatch.setattr(door.source, "current", lambda: None)
        assert door.status(good) == 503
