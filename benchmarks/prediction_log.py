"""What logging every prediction costs: one deployment with the log and without it, in turns.

    scripts/bench prediction_log [--seconds 4] [--turns 5] [--sqlite] [--days 140]

The model, the rows and the client are those of `scripts/bench serve`. Each turn deploys twice, in
one order and in the next turn in the other, for the machine's speed changes; what is told is the
median of the turns' ratios. CPU seconds are the replica's own, for each thousand requests.
Needs `wrk`, and `redis-server`: `apt-get install -y wrk redis-server`.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psutil
from _serve_load import closed, write_bodies
from _served import payment, penstock, penstock_environment, prepare, redis_server

GOAL = 0.95
NUM_CONNECTIONS = 32
WITH, WITHOUT = "true", "false"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=4, help="of each run")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sqlite", action="store_true", help="features in SQLite")
    parser.add_argument("--days", type=int, default=140, help="of simulated payments")
    parser.add_argument("--estimator", default="xgboost")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        measure(Path(name), given)


def measure(folder: Path, given: argparse.Namespace) -> None:
    bodies = write_bodies(folder, "one", lambda generator: {"rows": [payment(generator)]})
    found: dict[str, list[tuple[float, float]]] = {WITH: [], WITHOUT: []}
    with redis_server(folder, wanted=not given.sqlite) as redis, ExitStack() as servers:
        environment = penstock_environment(folder, redis)
        servers.callback(penstock, environment, "down")
        prepare(folder, environment, given)
        key = ""
        for turn in range(given.turns):
            for logs in (WITH, WITHOUT) if turn % 2 else (WITHOUT, WITH):
                chosen = environment | {"PENSTOCK_SERVING__LOG_PREDICTIONS": logs}
                url = json.loads(penstock(chosen, "deploy", "card_fraud", "--json"))["predict_url"]
                key = key or new_key(environment)
                closed(url, bodies, key, NUM_CONNECTIONS, 2)
                found[logs].append(loaded(url, bodies, key, given.seconds))
        segments = (folder / "storage" / "predictions").rglob("0*")
        assert sum(segment.stat().st_size for segment in segments) > 1e6, "nothing was logged"
    report(found)


def new_key(environment: dict[str, str]) -> str:
    made = penstock(environment, "api-keys", "create", "bench", "--scope", "predict:*")
    return made.splitlines()[0]


def loaded(url: str, bodies: Path, key: str, seconds: int) -> tuple[float, float]:
    """Requests a second, and the replica's CPU milliseconds for a request."""
    before = replica_cpu_s()
    load = closed(url, bodies, key, NUM_CONNECTIONS, seconds)
    (pid,) = (pid for pid, spent in replica_cpu_s().items() if spent - before.get(pid, 0) > 0.5)
    spent_s = replica_cpu_s()[pid] - before[pid]
    return load.requests_per_s, 1000 * spent_s / (load.requests_per_s * seconds)


def replica_cpu_s() -> dict[int, float]:
    replicas = (
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if "ServeReplica:card_fraud" in " ".join(process.info["cmdline"] or [])
    )
    return {each.pid: sum(each.cpu_times()[:2]) for each in replicas}


def report(found: dict[str, list[tuple[float, float]]]) -> None:
    pairs = list(zip(found[WITH], found[WITHOUT], strict=True))
    throughput = statistics.median(logs[0] / bare[0] for logs, bare in pairs)
    cpu = statistics.median(logs[1] / bare[1] for logs, bare in pairs)
    print(f"{'':12} {'req/s':>8} {'CPU ms a request':>17}")
    for label, logs in (("with log", WITH), ("without", WITHOUT)):
        per_s, cpu_ms = (statistics.median(column) for column in zip(*found[logs], strict=True))
        print(f"{label:12} {per_s:8,.0f} {cpu_ms:17.4f}")
    print(
        json.dumps(
            {
                "benchmark": "prediction_log",
                "throughput_with_over_without": round(throughput, 3),
                "cpu_with_over_without": round(cpu, 3),
                "goal": GOAL,
            }
        )
    )


if __name__ == "__main__":
    main()
