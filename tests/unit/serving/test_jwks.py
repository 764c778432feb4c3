import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from issuer import AUDIENCE, ISSUER, jwk, private_key, running_issuer
from penstock.access_settings import JwtSettings
from penstock.serving import jwks
from penstock.serving.jwks import MAX_AGE_S, KeySource, read_key_set
from waiting import wait_for


def published(*keys: dict) -> bytes:
    return json.dumps({"keys": keys}).encode()


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def open_source() -> Iterator[Callable[..., KeySource]]:
    opened: list[KeySource] = []

    def open_one(clock: Callable[[], float] = time.monotonic, **keys: str) -> KeySource:
        settings = JwtSettings(issuer=ISSUER, audience=AUDIENCE, **keys)
        opened.append(KeySource(settings, clock=clock, gap_s=0.05))
        return opened[-1]

    yield open_one
    for source in opened:
        source.close()


def names(source: KeySource) -> set[str]:
    found = source.current()
    return set() if found is None else {kid for kid, _ in found.keys}


class TestReadKeySet:
    def test_each_key_signs_with_its_own_algorithm_alone(self):
        found = read_key_set(published(jwk("a"), jwk("b", "RS256"), jwk("c", "EdDSA")))
        assert set(found.keys) == {("a", "ES256"), ("b", "RS256"), ("c", "EdDSA")}

    @pytest.mark.parametrize(
        "change",
        [{"use": "enc"}, {"alg": "RS512"}, {"kid": None}, {"crv": "P-521"}, {"kty": "oct2", "crv": None}],
    )  # fmt: skip
    def test_a_key_for_something_else_is_left_out(self, change: dict):
        assert set(read_key_set(published({**jwk("a"), **change}, jwk("b"))).keys) == {
            ("b", "ES256")
        }

    def test_a_short_rsa_key_is_left_out(self):
        import jwt

        public = private_key("short", "RS256", 1024).public_key()
        short = jwt.get_algorithm_by_name("RS256").to_jwk(public, as_dict=True)
        assert not read_key_set(published({**short, "kid": "short"})).keys

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b"{}", b'{"keys": 1}', b'{"keys": [1]}', b"<html>"]
    )
    def test_what_is_no_key_set_is_refused(self, content: bytes):
        with pytest.raises(ValueError, match=r"."):
            read_key_set(content)

    @pytest.mark.parametrize("secret", [{"kty": "oct", "k": "AAAA"}, {"kty": "EC", "d": "AAAA"}])
    def test_a_secret_among_the_keys_is_refused(self, secret: dict):
        with pytest.raises(ValueError, match="secret"):
            read_key_set(published(jwk("a"), secret))


class TestKeySource:
    def test_a_file_is_read_and_read_again(self, tmp_path: Path, open_source):
        file = tmp_path / "jwks.json"
        file.write_bytes(published(jwk("a")))
        source = open_source(jwks_file=str(file))
        wait_for(lambda: names(source) == {"a"})
        kept = source.current()
        source.want()
        time.sleep(0.2)
        assert source.current() is kept
        file.write_bytes(published(jwk("b")))
        wait_for(lambda: names(source) == {"b"})

    def test_a_key_that_is_wanted_is_fetched_and_many_wishes_are_one(
        self, open_source, monkeypatch: pytest.MonkeyPatch
    ):
        with running_issuer(jwk("a")) as issuer:
            source = open_source(jwks_url=issuer.url)
            wait_for(lambda: names(source) == {"a"})
            time.sleep(0.2)
            assert issuer.num_asked == 1
            source._gap_s = 3600.0
            issuer.keys = [jwk("a"), jwk("b")]
            source.want()
            wait_for(lambda: names(source) == {"a", "b"})
            for _ in range(100):
                source.want()
            time.sleep(0.2)
            assert issuer.num_asked == 2

    def test_while_the_issuer_is_down_its_keys_are_good_for_an_hour(self, open_source):
        clock = Clock()
        with running_issuer(jwk("a")) as issuer:
            source = open_source(clock, jwks_url=issuer.url)
            wait_for(lambda: names(source) == {"a"})
            issuer.is_down = True
            source.want()
            wait_for(lambda: issuer.num_asked > 2)
            assert names(source) == {"a"}
            clock.now_s = MAX_AGE_S
            assert names(source) == {"a"}
            clock.now_s += 1
            assert source.current() is None
            issuer.is_down = False
            wait_for(lambda: names(source) == {"a"})

    def test_nobody_is_redirected_to_other_keys(self, open_source):
        with running_issuer(jwk("evil")) as evil, running_issuer(jwk("a")) as issuer:
            issuer.leads_to = evil.url
            source = open_source(jwks_url=issuer.url)
            wait_for(lambda: issuer.num_asked > 1)
            assert source.current() is None
            assert evil.num_asked == 0

    def test_what_is_too_long_is_not_read(self, open_source, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(jwks, "_MAX_BYTES", 100)
        with running_issuer(jwk("a")) as issuer:
            source = open_source(jwks_url=issuer.url)
            wait_for(lambda: issuer.num_asked > 1)
            assert source.current() is None

    def test_it_ends_when_it_is_closed(self, tmp_path: Path, open_source):
        source = open_source(jwks_file=str(tmp_path / "absent"))
        assert source.current() is None
        source.close()
        assert "jwks" not in {thread.name for thread in threading.enumerate()}
