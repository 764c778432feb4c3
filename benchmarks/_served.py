"""The deployment that serve.py and prediction_log.py load: its Ray, its champion, its Redis."""

import argparse
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def payment(generator: random.Random) -> dict[str, Any]:
    time_of_day = f"{generator.randrange(24):02}:{generator.randrange(60):02}"
    return {
        "CUSTOMER_ID": generator.randrange(5000),
        "TERMINAL_ID": generator.randrange(10000),
        "TX_DATETIME": f"2018-08-15T{time_of_day}:00Z",
        "TX_AMOUNT": round(200 * generator.random(), 2),
    }


def penstock_environment(
    folder: Path, redis: str | None, *, first_port: int = 28000
) -> dict[str, str]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "RAY_"))}
    more = {
        "PENSTOCK_PROJECT_ROOT": str(ROOT),
        "PENSTOCK_STORAGE__ROOT": str(folder / "storage"),
        "PENSTOCK_SERVING__PORT": str(first_port),
        "PENSTOCK_SERVING__REQUIRE_KEY": "true",
        "PENSTOCK_RAY__GCS_PORT": str(first_port + 500),
        "PENSTOCK_RAY__DASHBOARD_PORT": str(first_port + 510),
        "PENSTOCK_RAY__METRICS_PORT": str(first_port + 520),
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
