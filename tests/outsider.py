"""Somebody on another machine: a network namespace of its own, led here by one cable.

As a script, run inside it, this scans ports and asks over TLS; it prints JSON.
"""

import errno
import http.client
import json
import os
import select
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_AT_ONCE = 500
_TIMEOUT_S = 10.0
ALL_PORTS = range(1, 65_536)


@dataclass(frozen=True)
class Outsider:
    """What it can do."""

    namespace: str
    host: str
    """This machine's address on the cable."""

    def scan(self, ports: Iterable[int] = ALL_PORTS) -> set[int]:
        """Find the ports that take a connection."""
        return set(self._run({"host": self.host, "ports": list(ports)}))

    def ask(
        self,
        port: int,
        paths: Iterable[str],
        *,
        ca: str,
        name: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: str | None = None,
    ) -> dict[str, int]:
        """Ask paths over TLS, with a body by POST; give the status of each, 0 for none."""
        asked = {"host": self.host, "port": port, "paths": list(paths), "ca": ca, "body": body}
        headers = {"Host": f"{name or self.host}:{port}", **(headers or {})}
        return dict(self._run({**asked, "headers": headers}))

    def _run(self, order: dict[str, Any]) -> Any:
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, sys.executable, __file__],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def why_not() -> str | None:
    """Say why there can be no outsider here."""
    return "a network namespace needs root" if os.geteuid() != 0 else None


@contextmanager
def outsider() -> Iterator[Outsider]:
    """Make one, and take it away again.

    Raises:
        PermissionError: this root may not make network namespaces, as in many containers.
    """
    number = os.getpid() % 16_384
    name, near, far = (f"penstock-{number}", f"pen{number}n", f"pen{number}f")
    # Of 198.18.0.0/15, which is for tests (RFC 2544).
    base = f"198.18.{number // 64}.{number % 64 * 4}".rsplit(".", 1)
    here, there = (f"{base[0]}.{int(base[1]) + one}" for one in (1, 2))
    _clean(name, near)
    try:
        _ip("netns", "add", name)
        _ip("link", "add", near, "type", "veth", "peer", "name", far)
        _ip("link", "set", far, "netns", name)
        _ip("addr", "add", f"{here}/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", name, "addr", "add", f"{there}/30", "dev", far)
        _ip("-n", name, "link", "set", far, "up")
        yield Outsider(name, here)
    finally:
        _clean(name, near)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PermissionError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _clean(name: str, near: str) -> None:
    for arguments in (("link", "del", near), ("netns", "del", name)):
        subprocess.run(["ip", *arguments], capture_output=True, check=False)


def _scan(host: str, ports: list[int]) -> list[int]:
    waiting, found = list(ports), []
    open_sockets: dict[int, tuple[socket.socket, int]] = {}
    poll = select.epoll()
    while waiting or open_sockets:
        while waiting and len(open_sockets) < _AT_ONCE:
            one, port = socket.socket(), waiting.pop()
            one.setblocking(False)
            code = one.connect_ex((host, port))
            if code in (0, errno.EINPROGRESS):
                open_sockets[one.fileno()] = one, port
                poll.register(one.fileno(), select.EPOLLOUT)
            else:
                one.close()
        events = poll.poll(_TIMEOUT_S)
        # Nothing is dropped on this cable: who does not answer now never will.
        for handle in [handle for handle, _ in events] or list(open_sockets):
            one, port = open_sockets.pop(handle)
            if events and one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(port)
            poll.unregister(handle)
            one.close()
    return found


def _ask(order: dict[str, Any]) -> dict[str, int]:
    context = ssl.create_default_context(cafile=order["ca"])
    statuses = {}
    for path in order["paths"]:
        connection = http.client.HTTPSConnection(
            order["host"], order["port"], timeout=60, context=context
        )
        try:
            method = "GET" if order["body"] is None else "POST"
            connection.putrequest(method, path, skip_host=True)
            for name, value in order["headers"].items():
                connection.putheader(name, value)
            body = (order["body"] or "").encode()
            if body:
                connection.putheader("Content-Length", str(len(body)))
                connection.putheader("Content-Type", "application/json")
            connection.endheaders(body or None)
            answer = connection.getresponse()
            answer.read()
            statuses[path] = answer.status
        except OSError:
            statuses[path] = 0
        finally:
            connection.close()
    return statuses


def main() -> None:
    order = json.load(sys.stdin)
    found: Any = _scan(order["host"], order["ports"]) if "ports" in order else _ask(order)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
