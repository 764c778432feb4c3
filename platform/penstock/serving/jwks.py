"""An identity provider's public keys (JWKS, RFC 7517): read in the background, old ones dropped.

No request waits for the provider. Where it does not answer, the keys that were read last are good
for an hour; then no token is taken until it answers again.
"""

import logging
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import orjson

from penstock.access_settings import JwtSettings, is_loopback

ALGORITHMS = ("RS256", "ES256", "EdDSA")
"""Signatures alone: a secret that both sides share would let every replica make tokens."""
MAX_AGE_S = 3600.0
"""How long keys are good that could not be read again."""
_REFRESH_URL_S = 300.0
_REFRESH_FILE_S = 1.0
_GAP_URL_S = 10.0
"""Not sooner again, whatever strangers send: a key's name that nobody knows costs nothing."""
_TIMEOUT_S = 5.0
_MAX_BYTES = 1 << 20
_MIN_RSA_BITS = 2048
_ALGORITHM_OF = {"RSA": "RS256", "P-256": "ES256", "Ed25519": "EdDSA"}

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class KeySet:
    """The keys that may sign, each for one algorithm alone."""

    keys: Mapping[tuple[str, str], Any]
    """By name (`kid`) and algorithm."""


def read_key_set(content: bytes) -> KeySet:
    """Take the usable keys out of a JWKS; those for something else are left out.

    Raises:
        ValueError: it is no JWKS, or it holds a private key or a shared secret.
    """
    document = orjson.loads(content)
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise ValueError("a JSON object whose `keys` are objects")
    if any("d" in each or each.get("kty") == "oct" for each in listed):
        raise ValueError("public keys alone; this has a secret")
    keys = {}
    for each in listed:
        algorithm = _ALGORITHM_OF.get(each.get("crv") or each.get("kty", ""))
        kid = each.get("kid")
        is_for_us = each.get("use", "sig") == "sig" and each.get("alg", algorithm) == algorithm
        if algorithm is None or not is_for_us or not isinstance(kid, str):
            continue
        try:
            key = jwt.PyJWK(each, algorithm=algorithm).key
        except jwt.PyJWTError:
            continue
        if algorithm != "RS256" or key.key_size >= _MIN_RSA_BITS:
            keys[kid, algorithm] = key
    return KeySet(keys)


class KeySource:
    """Reads the keys again and again, in a thread of its own."""

    def __init__(
        self,
        settings: JwtSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        gap_s: float | None = None,
    ) -> None:
        """Begin to read; `current` gives nothing until that is done once."""
        self._file, self._url = settings.jwks_file, settings.jwks_url
        self._refresh_s = _REFRESH_URL_S if self._file is None else _REFRESH_FILE_S
        self._gap_s = min(self._refresh_s, _GAP_URL_S) if gap_s is None else gap_s
        self._clock = clock
        self._content = b""
        self._known: tuple[KeySet, float] | None = None
        self._is_failing = False
        self._wanted, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="jwks", daemon=True)
        self._thread.start()

    def current(self) -> KeySet | None:
        """Give the keys; None: none are known, or they are too old."""
        known = self._known
        if known is None or self._clock() - known[1] > MAX_AGE_S:
            return None
        return known[0]

    def want(self) -> None:
        """Have them read again soon: a token names a key that is not among them."""
        self._wanted.set()

    def close(self) -> None:
        """Stop reading."""
        self._closed.set()
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._read()
            # What is wanted during the gap is answered behind it.
            self._closed.wait(self._gap_s)
            self._wanted.wait(0 if self._is_failing else self._refresh_s - self._gap_s)
            self._wanted.clear()

    def _read(self) -> None:
        try:
            content = Path(self._file).read_bytes() if self._file else _fetch(str(self._url))
            if self._known is None or content != self._content:
                self._known = read_key_set(content), self._clock()
                self._content = content
            else:
                # The same object: tokens that were verified against it stay verified.
                self._known = self._known[0], self._clock()
            self._is_failing = False
        except Exception as error:  # noqa: BLE001 - the thread must outlive whatever comes back
            if not self._is_failing:
                where = self._file or self._url
                logger.warning("the issuer's keys can't be read from %s: %s", where, error)
            self._is_failing = True


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Whoever may redirect us may tell us whom to trust."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _fetch(url: str) -> bytes:
    host = urlsplit(url).hostname or ""
    handlers: list[Any] = [_NoRedirect()]
    if is_loopback(host):
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    with opener.open(url, timeout=_TIMEOUT_S) as page:
        content = bytes(page.read(_MAX_BYTES + 1))
    if len(content) > _MAX_BYTES:
        raise ValueError(f"over {_MAX_BYTES:,} bytes")
    return content
