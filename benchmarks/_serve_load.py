"""What loads the servers of benchmarks/serve.py: wrk for closed loops, and an open loop of its own.

A closed loop asks again once it is answered, so a slow server is asked less. An open loop asks when
it is time to, as the world does, and a request's latency counts from then: a server that falls
behind shows it. wrk has none, so this file is one as a program; it prints one JSON line.
"""

import argparse
import asyncio
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

NUM_BODIES = 5000
_TICK_S = 0.001
_MAX_CONNECTIONS = 4000
_MIN_IDLE = 32
_DRAIN_S = 10.0
_WRK_SCRIPT = """
math.randomseed(7)
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
local bodies = {{}}
for line in io.lines("{bodies}") do bodies[#bodies + 1] = line end
function request()
  return wrk.format(nil, nil, nil, bodies[math.random(#bodies)])
end
"""


@dataclass(frozen=True)
class Load:
    """What the client saw of a closed loop."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, kw_only=True)
class OpenLoad:
    """What the client saw of an open loop; latencies count from when a request was due."""

    asked_per_s: float
    """The rate that was asked for."""
    offered_per_s: float
    """The rate that came to be."""
    answered_per_s: float
    """With 200."""
    p50_ms: float
    p99_ms: float
    refused: dict[str, int]
    """By status; those that got no answer under `none`."""
    refused_p50_ms: float | None
    refused_p99_ms: float | None
    unsent: int
    """Due, and no connection was left to send it on."""


def write_bodies(folder: Path, name: str, make: Callable[[random.Random], dict[str, Any]]) -> Path:
    """Write so many different request bodies, a line each."""
    generator = random.Random(7)
    path = folder / f"{name}.jsonl"
    lines = (json.dumps(make(generator), separators=(",", ":")) for _ in range(NUM_BODIES))
    path.write_text("\n".join(lines) + "\n")
    return path


def closed(url: str, bodies: Path, key: str, num_connections: int, seconds: int) -> Load:
    """Load with wrk, on the last core; each connection asks again once it is answered."""
    script = bodies.with_suffix(".lua")
    script.write_text(_WRK_SCRIPT.format(key=key, bodies=bodies))
    flags = ["-t1", f"-c{num_connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
    text = subprocess.run(
        [*_pinned(), "wrk", *flags, "-s", script, url], capture_output=True, text=True, check=True
    ).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        sys.exit(f"not every request was answered:\n{text}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate is not None, text
    return Load(float(rate[1]), _percentile(text, 50), _percentile(text, 99))


def open_loop(url: str, bodies: Path, key: str, per_s: float, seconds: int) -> OpenLoad:
    """Ask so many times a second, on the last core, whatever the server does."""
    arguments = [url, str(bodies), "--per-s", str(per_s), "--seconds", str(seconds)]
    text = subprocess.run(
        [*_pinned(), sys.executable, __file__, *arguments],
        capture_output=True,
        text=True,
        check=True,
        # Not among the arguments, which every process of this machine may read.
        env=os.environ | {"BENCH_API_KEY": key},
    ).stdout
    return OpenLoad(**json.loads(text.splitlines()[-1]))


def median(loads: list[Load]) -> Load:
    """Give each number's median."""
    return Load(
        requests_per_s=statistics.median(load.requests_per_s for load in loads),
        p50_ms=statistics.median(load.p50_ms for load in loads),
        p99_ms=statistics.median(load.p99_ms for load in loads),
    )


def median_open(loads: list[OpenLoad]) -> OpenLoad:
    """Give each number's median; counts are of all runs."""
    found: dict[str, Any] = {}
    for each in fields(OpenLoad):
        values = [getattr(load, each.name) for load in loads]
        if each.name == "refused":
            found[each.name] = dict(sum((Counter(value) for value in values), Counter()))
        elif each.name == "unsent":
            found[each.name] = sum(values)
        else:
            told = [value for value in values if value is not None]
            found[each.name] = round(statistics.median(told), 2) if told else None
    return OpenLoad(**found)


def _pinned() -> list[str]:
    return ["taskset", "-c", str((os.cpu_count() or 1) - 1)] if shutil.which("taskset") else []


def _percentile(text: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s)\s*$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


@dataclass
class _Client:
    """Connections that are kept, and what came back on them."""

    host: str
    port: int
    requests: list[bytes]
    idle: "deque[_Connection]" = field(default_factory=deque)
    num_open: int = 0
    num_waiting: int = 0
    took_s: dict[str, list[float]] = field(default_factory=dict)
    counted: Counter[str] = field(default_factory=Counter)

    def ended(self, status: str, due_s: float) -> None:
        self.num_waiting -= 1
        self.counted[status] += 1
        self.took_s.setdefault(status, []).append(time.perf_counter() - due_s)


class _Connection(asyncio.Protocol):
    """One request at a time; of an answer only its status and its length are read."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._due_s: float | None = None
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, due_s: float) -> None:
        assert self._transport is not None
        self._due_s = due_s
        self._client.num_waiting += 1
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        read = self._read + data if self._read else data
        end = read.find(b"\r\n\r\n")
        if end >= 0:
            head = read[:end].lower()
            start = head.find(b"content-length:") + 15
            length = int(head[start:].split(b"\r\n", 1)[0]) if start >= 15 else 0
            if len(read) >= end + 4 + length:
                self._read = b""
                self._end(read[9:12].decode())
                if b"connection: close" not in head:
                    self._client.idle.append(self)
                return
        self._read = read

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.num_open -= 1
        if self in self._client.idle:
            self._client.idle.remove(self)
        self._end("none")

    def _end(self, status: str) -> None:
        if self._due_s is not None:
            self._client.ended(status, self._due_s)
            self._due_s = None


async def _load(client: _Client, per_s: float, seconds: float) -> OpenLoad:
    loop = asyncio.get_running_loop()
    generator = random.Random(7)

    async def connect() -> None:
        client.num_open += 1
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(client), client.host, client.port
            )
        except OSError:
            client.num_open -= 1
            return
        client.idle.append(connection)

    for _ in range(64):
        await connect()
    unsent, num_due, opening = 0, 0, set()
    begun_s = time.perf_counter()
    due_s = begun_s
    while due_s < begun_s + seconds:
        now_s = time.perf_counter()
        while due_s <= now_s:
            # Independent callers: a Poisson process.
            num_due += 1
            if client.idle:
                client.idle.pop().send(client.requests[num_due % len(client.requests)], due_s)
            else:
                unsent += 1
            due_s += generator.expovariate(per_s)
        # Those being opened count: a server that pauses must not be met by a storm of them.
        if len(client.idle) + len(opening) < _MIN_IDLE and client.num_open < _MAX_CONNECTIONS:
            for _ in range(min(64, _MAX_CONNECTIONS - client.num_open)):
                task = asyncio.ensure_future(connect())
                opening.add(task)
                task.add_done_callback(opening.discard)
        await asyncio.sleep(_TICK_S)
    took_s = time.perf_counter() - begun_s
    drained_s = time.perf_counter() + _DRAIN_S
    while client.num_waiting and time.perf_counter() < drained_s:
        await asyncio.sleep(0.01)
    answered = client.took_s.get("200", [])
    refused = [t for status, times in client.took_s.items() if status != "200" for t in times]
    return OpenLoad(
        asked_per_s=per_s,
        offered_per_s=round(num_due / took_s, 1),
        answered_per_s=round(len(answered) / took_s, 1),
        p50_ms=_quantile_ms(answered, 0.5) or 0.0,
        p99_ms=_quantile_ms(answered, 0.99) or 0.0,
        refused={
            **{status: count for status, count in client.counted.items() if status != "200"},
            **({"none": client.num_waiting} if client.num_waiting else {}),
        },
        refused_p50_ms=_quantile_ms(refused, 0.5),
        refused_p99_ms=_quantile_ms(refused, 0.99),
        unsent=unsent,
    )


def _quantile_ms(times_s: list[float], quantile: float) -> float | None:
    if not times_s:
        return None
    return round(1000 * sorted(times_s)[int(quantile * (len(times_s) - 1))], 2)


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path)
    parser.add_argument("--per-s", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    url = urlsplit(given.url)
    assert url.hostname
    assert url.port
    head = (
        f"POST {url.path} HTTP/1.1\r\nHost: {url.hostname}:{url.port}\r\n"
        f"Authorization: Bearer {os.environ.get('BENCH_API_KEY', '')}\r\n"
        "Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    requests = [
        head.format(length=len(line)).encode() + line
        for line in given.bodies.read_bytes().splitlines()
    ]
    client = _Client(url.hostname, url.port, requests)
    found = uvloop.run(_load(client, given.per_s, given.seconds))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
