"""An identity provider for tests: real keys, real tokens, a real HTTP server on loopback."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER = "https://id.example/realms/shop"
AUDIENCE = "penstock"


@cache
def private_key(kid: str, algorithm: str, size: int = 2048) -> Any:
    if algorithm == "RS256":
        return rsa.generate_private_key(65537, size)
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return ed25519.Ed25519PrivateKey.generate()


def jwk(kid: str, algorithm: str = "ES256", **more: Any) -> dict[str, Any]:
    """The public key as the issuer publishes it."""
    public = private_key(kid, algorithm).public_key()
    made = jwt.get_algorithm_by_name(algorithm).to_jwk(public, as_dict=True)
    return {**made, "kid": kid, "use": "sig", **more}


def token(kid: str = "a", algorithm: str = "ES256", *, key: Any = None, **claims: Any) -> str:
    """A good token; claims replace its own, None takes one away."""
    whole = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "exp": int(time.time()) + 300,
        "scope": "openid predict:spills",
        **claims,
    }
    return jwt.encode(
        {name: value for name, value in whole.items() if value is not None},
        private_key(kid, algorithm) if key is None else key,
        algorithm=algorithm,
        headers={"kid": kid},
    )


@dataclass
class Issuer:
    """What is published, and how often it was asked for."""

    keys: list[dict[str, Any]]
    is_down: bool = False
    leads_to: str | None = None
    num_asked: int = 0
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        with self._lock:
            self.num_asked += 1
        body = json.dumps({"keys": self.keys}).encode()
        handler.send_response(503 if self.is_down else 302 if self.leads_to else 200)
        if self.leads_to:
            handler.send_header("Location", self.leads_to)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


@contextmanager
def running_issuer(*keys: dict[str, Any]) -> Iterator[Issuer]:
    issuer = Issuer(list(keys))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        issuer.url = f"http://127.0.0.1:{server.server_port}/jwks.json"
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
