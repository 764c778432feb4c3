"""Online prediction with feature lookup: Penstock beside what is glued by hand, under one load.

    scripts/bench serve [--sqlite] [--seconds 4] [--days 140] [--estimator xgboost]

In one run, on one machine, with the same model, features, rows and client: Penstock as `penstock
deploy` leaves it, asking for keys; FastAPI with Feast's SDK and an MLflow pyfunc on uvicorn; the
same on Ray Serve's defaults. And FastAPI with the bare graph, which is handed its features, and
neither asks for keys nor logs: what serving costs at the least. Each runs one serving process.
Features are in Redis, or with --sqlite in a file. Penstock and the FastAPIs are up at once and
loaded in turns, Serve's defaults afterwards. Each number is the median of five runs.

Then open loops, on Penstock alone, five times: at 60 % of what it has just answered in a closed
one, and at three times that.
Needs `wrk`, and `redis-server`: `apt-get install -y wrk redis-server`.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from _serve_load import (  # noqa: E402
    Load,
    OpenLoad,
    closed,
    median,
    median_open,
    open_loop,
    write_bodies,
)
from _served import (  # noqa: E402
    free_port,
    payment,
    penstock,
    penstock_environment,
    prepare,
    redis_server,
)

NUM_CONNECTIONS = 32
CONNECTIONS = (NUM_CONNECTIONS, 1)
NUM_RUNS = 5
ROWS_PER_LARGE_REQUEST = 100
NUM_LARGE_CONNECTIONS = 8
GLUED, DEFAULTS = "FastAPI + Feast SDK + MLflow", "the same on Serve's defaults"
BARE = "FastAPI + onnxruntime, features given"
SHARES = (0.6, 3.0)
"""Of the capacity, that open loops ask for."""
LABELS = ("Penstock", GLUED, BARE, DEFAULTS)
GOALS = {
    "ratio": 8.0,
    "ratio_to_bare": 0.7,
    "p99_ms_at_60_percent": 25.0,
    "p50_ms_at_1": 1.5,
    "goodput_at_3x": 0.8,
    "refused_ms_at_3x": 100.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sqlite", action="store_true", help="features in SQLite, for all")
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--days", type=int, default=140, help="of simulated payments")
    parser.add_argument("--estimator", default="xgboost")
    arguments = parser.parse_args()
    for program in ("wrk", *([] if arguments.sqlite else ["redis-server"])):
        if shutil.which(program) is None:
            sys.exit(f"{program} is not installed: apt-get install -y {program}")
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        measure(Path(name), arguments)


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    one = write_bodies(folder, "one", lambda generator: {"rows": [payment(generator)]})
    large = write_bodies(
        folder,
        "large",
        lambda generator: {"rows": [payment(generator) for _ in range(ROWS_PER_LARGE_REQUEST)]},
    )
    with redis_server(folder, wanted=not arguments.sqlite) as redis, ExitStack() as servers:
        environment = penstock_environment(folder, redis)
        servers.callback(penstock, environment, "down")
        prepare(folder, environment, arguments)
        deployed = json.loads(penstock(environment, "deploy", "card_fraud", "--json"))
        url = deployed["predict_url"]
        created = penstock(
            environment, "api-keys", "create", "bench", "--scope", "predict:card_fraud"
        )
        key = created.splitlines()[0]
        scores = ask(url, key)
        peers = prepare_peers(folder, environment, deployed, redis)
        given = write_bodies(folder, "given", lambda generator: features(generator, peers))
        with running(folder, "fastapi", peers) as glued, running(folder, "bare", peers) as bare:
            check_same(GLUED, scores, ask(glued))
            targets = {"Penstock": (url, one), GLUED: (glued, one), BARE: (bare, given)}
            loads = take_turns(targets, key, arguments.seconds)
        large_load = closed(url, large, key, NUM_LARGE_CONNECTIONS, arguments.seconds)
        opened = open_turns(url, one, key, arguments.seconds)
        servers.close()
        # By itself: the processes of another Ray would cost the others a tenth of a core.
        with running(folder, "serve", peers) as defaults:
            check_same(DEFAULTS, scores, ask(defaults))
            loads |= take_turns({DEFAULTS: (defaults, one)}, key, arguments.seconds)
    results = {label: {n: median(loads[label, n]) for n in CONNECTIONS} for label in LABELS}
    report(results, large_load, opened, arguments)


def features(generator: random.Random, peers: dict[str, str]) -> dict[str, Any]:
    num_features = len(peers["features"].split(","))
    return {"rows": [[round(100 * generator.random(), 4) for _ in range(num_features)]]}


def take_turns(
    targets: dict[str, tuple[str, Path]], key: str, seconds: int
) -> dict[tuple[str, int], list[Load]]:
    """Load one server after the other, again and again: whatever the machine does meets all."""
    loads: dict[tuple[str, int], list[Load]] = {(u, n): [] for u in targets for n in CONNECTIONS}
    for url, bodies in targets.values():
        closed(url, bodies, key, NUM_CONNECTIONS, 3)
    for _ in range(NUM_RUNS):
        for label, (url, bodies) in targets.items():
            for num_connections in CONNECTIONS:
                loads[label, num_connections].append(
                    closed(url, bodies, key, num_connections, seconds)
                )
                time.sleep(1)
    return loads


def open_turns(url: str, bodies: Path, key: str, seconds: int) -> dict[float, list[OpenLoad]]:
    """Ask for shares of what the server has just been able to: the machine's speed changes."""
    opened: dict[float, list[OpenLoad]] = {share: [] for share in SHARES}
    for _ in range(NUM_RUNS):
        capacity = closed(url, bodies, key, NUM_CONNECTIONS, seconds).requests_per_s
        for share in SHARES:
            opened[share].append(open_loop(url, bodies, key, share * capacity, seconds))
            time.sleep(1)
    return opened


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
        "graph": str(Path(deployed["package_path"]) / "model.onnx"),
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
            except (OSError, ValueError) as error:
                if getattr(error, "code", None) == 422:
                    break  # It is there, and takes other rows than these.
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


def ask(url: str, key: str = "") -> list[float]:
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
        url,
        json.dumps({"rows": rows}).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {key}"},
    )
    with urllib.request.urlopen(request, timeout=30) as page:  # noqa: S310 - the same
        return [prediction["score"] for prediction in json.load(page)["predictions"]]


def check_same(label: str, mine: list[float], theirs: list[float]) -> None:
    from _serve_peers import same_score

    for row, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        if not same_score(a, b):
            sys.exit(f"{label} gives {b} for row {row} and Penstock {a}: not the same model")


def report(
    results: dict[str, dict[int, Load]],
    large: Load,
    opened: dict[float, list[OpenLoad]],
    arguments: argparse.Namespace,
) -> None:
    from rich.console import Console
    from rich.table import Table

    store = "SQLite" if arguments.sqlite else "Redis"
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
    capacity = results["Penstock"][NUM_CONNECTIONS].requests_per_s
    medians = {share: median_open(runs) for share, runs in opened.items()}
    for share, load in medians.items():
        refused = "none refused"
        if load.refused:
            refused = f"refused {load.refused}, of these p99 {load.refused_p99_ms} ms"
        print(
            f"open loop at {share:g} of that: {load.offered_per_s:,.0f} offered a second, "
            f"{load.answered_per_s:,.0f} answered, p50 {load.p50_ms} ms, p99 {load.p99_ms} ms; "
            f"{refused}; {load.unsent} unsent; p99 of each run "
            f"{', '.join(f'{run.p99_ms:.1f}' for run in opened[share])} ms"
        )
    # What was offered is three times the capacity of its moment.
    goodputs = [3 * run.answered_per_s / run.asked_per_s for run in opened[3.0]]
    rows_per_s = ROWS_PER_LARGE_REQUEST * large.requests_per_s
    print(f"{ROWS_PER_LARGE_REQUEST} rows a request: {rows_per_s:,.0f} rows/s")
    ratio = {
        label: round(capacity / loads[NUM_CONNECTIONS].requests_per_s, 2)
        for label, loads in results.items()
    }
    line = {
        "benchmark": "serve",
        "online_store": store.lower(),
        "requests_per_s": round(capacity),
        "p99_ms": results["Penstock"][NUM_CONNECTIONS].p99_ms,
        "p50_ms_at_1": results["Penstock"][1].p50_ms,
        "ratio_to_fastapi": ratio[GLUED],
        "ratio_to_serve_defaults": ratio[DEFAULTS],
        "ratio_to_bare": ratio[BARE],
        "p99_ms_at_60_percent": medians[0.6].p99_ms,
        "goodput_at_3x": round(statistics.median(goodputs), 2),
        "refused_ms_at_3x": medians[3.0].refused_p99_ms,
        "rows_per_s_at_100": round(rows_per_s),
        "goals": GOALS,
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
