"""Sends requests to a live server, also such as no HTTP library would."""

import http.client
import json
import socket
from dataclasses import dataclass
from typing import Any

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Reply:
    """What came back, of whatever status."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def send(
    port: int,
    path: str,
    body: bytes | str = b"",
    *,
    method: str = "POST",
    headers: dict[str, str] = JSON,
) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        chunked = "Transfer-Encoding" in headers
        connection.request(method, path, body, headers, encode_chunked=chunked)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())
    finally:
        connection.close()


def send_raw(port: int, text: bytes) -> bytes:
    """Send bytes that no HTTP library would, and read to the end."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as wire:
        wire.sendall(text)
        wire.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: wire.recv(65536), b""))
