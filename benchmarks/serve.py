"""Online prediction with feature lookup: Penstock beside what is glued by hand, under one load.

    scripts/bench serve [--redis] [--seconds 4] [--days 140] [--estimator xgboost]

In one run, on one machine, with the same model, features, rows and client: Penstock as `penstock
deploy` leaves it; FastAPI with Feast's SDK and an MLflow pyfunc on uvicorn; the same on Ray Serve's
defaults. All three run one serving process. Penstock and FastAPI are up at once and loaded in
turns, Serve's defaults afterwards. Each number is the median of five runs.
Needs `wrk`: `apt-get install -y wrk`.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

NUM_CONNECTIONS = 32
CONNECTIONS = (NUM_CONNECTIONS, 1)
NUM_RUNS = 5
GLUED, DEFAULTS = "FastAPI + Feast SDK + MLflow", "the same on Serve's defaults"
LABELS = ("Penstock", GLUED, DEFAULTS)
GOALS = {"ratio": 8.0, "p99_ms": 25.0, "p50_ms_at_1": 1.5}
WRK_SCRIPT = """
math.randomseed(7)
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
function request()
  local row = string.format(
    '{"CUSTOMER_ID":%d,"TERMINAL_ID":%d,"TX_DATETIME":"2018-08-15T%02d:%02d:00Z","TX_AMOUNT":%.2f}',
    math.random(0, 4999), math.random(0, 9999), math.random(0, 23), math.random(0, 59),
    math.random() * 200)
  return wrk.format(nil, nil, nil, '{"rows":[' .. row .. ']}')
end
"""


@dataclass(frozen=True)
class Load:
    """What the client saw."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--redis", action="store_true", help="features in Redis, for all three")
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--days", type=int, default=140, help="of simulated payments")
    parser.add_argument("--estimator", default="xgboost")
    arguments = parser.parse_args()
    for program in ("wrk", *(["redis-server"] if arguments.redis else [])):
        if shutil.which(program) is None:
            package = "wrk" if program == "wrk" else "redis-server"
            sys.exit(f"{program} is not installed: apt-get install -y {package}")
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        measure(Path(name), arguments)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    script = folder / "payments.lua"
    script.write_text(WRK_SCRIPT)
    with redis_server(folder, wanted=arguments.redis) as redis, ExitStack() as servers:
        environment = penstock_environment(folder, redis)
        servers.callback(penstock, environment, "down")
        prepare(folder, environment, arguments)
        deployed = json.loads(penstock(environment, "deploy", "card_fraud", "--json"))
        scores = ask(deployed["predict_url"])
        peers = prepare_peers(folder, environment, deployed, redis)
        with running(folder, "fastapi", peers) as url:
            check_same(GLUED, scores, ask(url))
            urls = {"Penstock": deployed["predict_url"], GLUED: url}
            loads = take_turns(urls, script, arguments.seconds)
        servers.close()
        # By itself: the processes of another Ray would cost the other two a tenth of a core.
        with running(folder, "serve", peers) as url:
            check_same(DEFAULTS, scores, ask(url))
            loads |= take_turns({DEFAULTS: url}, script, arguments.seconds)
    report(
        {label: {n: median(loads[label, n]) for n in CONNECTIONS} for label in LABELS}, arguments
    )


def take_turns(
    urls: dict[str, str], script: Path, seconds: int
) -> dict[tuple[str, int], list[Load]]:
    """Load one server after the other, again and again: whatever the machine does meets all."""
    loads: dict[tuple[str, int], list[Load]] = {(u, n): [] for u in urls for n in CONNECTIONS}
    for url in urls.values():
        wrk(url, script, NUM_CONNECTIONS, 3)
    for _ in range(NUM_RUNS):
        for label, url in urls.items():
            for num_connections in CONNECTIONS:
                loads[label, num_connections].append(wrk(url, script, num_connections, seconds))
                time.sleep(1)
    return loads


def penstock_environment(folder: Path, redis: str | None) -> dict[str, str]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "RAY_"))}
    more = {
        "PENSTOCK_PROJECT_ROOT": str(ROOT),
        "PENSTOCK_STORAGE__ROOT": str(folder / "storage"),
        "PENSTOCK_SERVING__PORT": "28000",
        "PENSTOCK_RAY__GCS_PORT": "28500",
        "PENSTOCK_RAY__DASHBOARD_PORT": "28510",
        "PENSTOCK_RAY__METRICS_PORT": "28520",
    }
    if redis:
        more |= {
            "PENSTOCK_FEATURE_STORE__ONLINE_STORE": "redis",
            "PENSTOCK_FEATURE_STORE__REDIS": redis,
        }
    return mine | more


def penstock(environment: dict[str, str], *arguments: str) -> str:
    print(f"$ penstock {' '.join(arguments)}", file=sys.stderr)
    done = subprocess.run(
        [Path(sys.executable).parent / "penstock", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"penstock {' '.join(arguments)} ended with {done.returncode}\n{done.stderr}")
    return done.stdout


def prepare(folder: Path, environment: dict[str, str], arguments: argparse.Namespace) -> None:
    """The journey up to a champion, on simulated payments."""
    penstock(environment, "up")
    sample = folder / "sample"
    penstock(
        environment, "sample", "card_fraud", "--out", str(sample), "--days", str(arguments.days)
    )
    files = [str(path) for path in sorted(sample.glob("*.parquet"))]
    penstock(environment, "data", "ingest", "card_fraud.transactions", *files)
    for step in ("apply", "build", "materialize"):
        penstock(environment, "features", step, "card_fraud")
    penstock(environment, "train", "card_fraud", "--estimator", arguments.estimator)
    penstock(environment, "models", "promote", "card_fraud")


def prepare_peers(
    folder: Path, environment: dict[str, str], deployed: dict[str, Any], redis: str | None
) -> dict[str, str]:
    """Feast's own store with the same rows, and the same model as MLflow would serve it."""
    os.environ.update({k: v for k, v in environment.items() if k.startswith("PENSTOCK_")})
    from datetime import UTC, datetime

    import polars as pl
    from _serve_peers import write_model, write_repo
    from feast.infra.offline_stores.offline_utils import get_offline_store_from_config

    from penstock.features.declarations import load_feature_objects
    from penstock.features.newest_rows import newest_rows
    from penstock.features.online_rows import EPOCH
    from penstock.features.store import open_store, registered_view
    from penstock.registry.package import verify
    from penstock.settings import load_settings

    settings = load_settings()
    store = open_store(settings)
    offline = get_offline_store_from_config(store.config.offline_store)
    frames: dict[str, pl.DataFrame] = {}
    for view in load_feature_objects(settings, "card_fraud").views.values():
        view = registered_view(store, view)
        rows = newest_rows(store.config, offline, view, EPOCH, datetime.now(UTC))
        numbers = [c for c in rows.columns if c not in (*view.join_keys, "TX_DATETIME")]
        frames[view.name.removeprefix("card_fraud_")] = rows.with_columns(
            pl.col(numbers).cast(pl.Float64)
        )
    package = verify(Path(deployed["package_path"]), settings)
    return {
        "repo": str(write_repo(folder / "feast_repo", frames, redis)),
        "model": str(write_model(folder / "pyfunc", Path(deployed["package_path"]))),
        "features": ",".join(package.signature.feature_names),
    }


@contextmanager
def running(folder: Path, peer: str, options: dict[str, str]) -> Iterator[str]:
    """A peer's process, until it answers; ended afterwards."""
    port = free_port()
    # Without what our own Ray was started with: these are the defaults.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "RAY_"))}
    # One thread a process for all three: OpenMP's threads would fight over rows of one.
    environment["OMP_NUM_THREADS"] = "1"
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    peers_file = ROOT / "benchmarks" / "_serve_peers.py"
    log_file = folder / f"{peer}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, peers_file, peer, "--port", str(port), *flags],
            env=environment,
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}/predict"
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                ask(url)
                break
            except (OSError, ValueError):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(
                        f"{peer} did not start:\n{(folder / f'{peer}.log').read_text()[-3000:]}"
                    )
                time.sleep(0.5)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def redis_server(folder: Path, *, wanted: bool) -> Iterator[str | None]:
    if not wanted:
        yield None
        return
    port = free_port()
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str) -> list[float]:
    """The scores of a few fixed rows, to see that all three are the same model."""
    rows = [
        {
            "CUSTOMER_ID": 100 * n,
            "TERMINAL_ID": 300 * n,
            "TX_DATETIME": "2018-08-15T03:12:00Z",
            "TX_AMOUNT": 10.5 * n,
        }
        for n in range(1, 21)
    ]
    request = urllib.request.Request(  # noqa: S310 - a server of our own
        url, json.dumps({"rows": rows}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as page:  # noqa: S310 - the same
        return [prediction["score"] for prediction in json.load(page)["predictions"]]


def check_same(label: str, mine: list[float], theirs: list[float]) -> None:
    from _serve_peers import same_score

    for row, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if not same_score(a, b):
            sys.exit(f"{label} gives {b} for row {row} and Penstock {a}: not the same model")


def median(loads: list[Load]) -> Load:
    return Load(
        requests_per_s=statistics.median(load.requests_per_s for load in loads),
        p50_ms=statistics.median(load.p50_ms for load in loads),
        p99_ms=statistics.median(load.p99_ms for load in loads),
    )


def wrk(url: str, script: Path, num_connections: int, seconds: int) -> Load:
    pinned = ["taskset", "-c", str((os.cpu_count() or 1) - 1)] if shutil.which("taskset") else []
    flags = ["-t1", f"-c{num_connections}", f"-d{seconds}s", "--latency", "--timeout", "30s"]
    text = subprocess.run(
        [*pinned, "wrk", *flags, "-s", script, url], capture_output=True, text=True, check=True
    ).stdout
    if "Non-2xx" in text or "Socket errors" in text:
        sys.exit(f"not every request was answered:\n{text}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert rate is not None, text
    return Load(float(rate[1]), percentile(text, 50), percentile(text, 99))


def percentile(text: str, percent: int) -> float:
    found = re.search(rf"^\s+{percent}%\s+([\d.]+)(us|ms|s)\s*$", text, re.MULTILINE)
    assert found is not None, text
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


def report(results: dict[str, dict[int, Load]], arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    store = "Redis" if arguments.redis else "SQLite"
    table = Table(title=f"predict with feature lookup ({store}), one row a request")
    for column in ("", f"{NUM_CONNECTIONS} connections: req/s", "p50 ms", "p99 ms", "1: p50 ms"):
        table.add_column(column, justify="right" if column else "left")
    for label, loads in results.items():
        many, one = loads[NUM_CONNECTIONS], loads[1]
        table.add_row(
            label,
            f"{many.requests_per_s:,.0f}",
            f"{many.p50_ms:.1f}",
            f"{many.p99_ms:.1f}",
            f"{one.p50_ms:.2f}",
        )
    Console(width=110).print(table)
    ours, *others = results.values()
    many = ours[NUM_CONNECTIONS]
    ratios = [round(many.requests_per_s / o[NUM_CONNECTIONS].requests_per_s, 2) for o in others]
    line = {
        "benchmark": "serve",
        "online_store": store.lower(),
        "requests_per_s": round(many.requests_per_s),
        "p99_ms": many.p99_ms,
        "p50_ms_at_1": ours[1].p50_ms,
        "ratio_to_fastapi": ratios[0],
        "ratio_to_serve_defaults": ratios[1],
        "goals": GOALS,
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
