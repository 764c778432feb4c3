"""What logging every prediction costs: two servers, one with the log and one without, in turns.

    scripts/bench prediction_log [--seconds 1] [--turns 40] [--sqlite] [--days 140]

The model, the rows and the client are those of `scripts/bench serve`. Both servers are up all the
time and each is loaded for a second while the other rests, for the machine's speed changes from
one second to the next by more than the log costs; what is told is the median of the turns' ratios.
CPU seconds are the replica's own. Needs `wrk`, and `redis-server`:
`apt-get install -y wrk redis-server`.
"""

import argparse
import json
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import psutil
from _serve_load import closed, write_bodies
from _served import payment, penstock, penstock_environment, prepare, redis_server

GOAL = 0.95
NUM_CONNECTIONS = 32
WITH, WITHOUT = "true", "false"
FIRST_PORTS = {WITH: 28000, WITHOUT: 27000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=1, help="of each run")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--sqlite", action="store_true", help="features in SQLite")
    parser.add_argument("--days", type=int, default=140, help="of simulated payments")
    parser.add_argument("--estimator", default="xgboost")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        measure(Path(name), given)


def measure(folder: Path, given: argparse.Namespace) -> None:
    bodies = write_bodies(folder, "one", lambda generator: {"rows": [payment(generator)]})
    found: dict[str, list[tuple[float, float]]] = {WITH: [], WITHOUT: []}
    servers: dict[str, tuple[str, str]] = {}
    with redis_server(folder, wanted=not given.sqlite) as redis, ExitStack() as running:
        for logs, first_port in FIRST_PORTS.items():
            mine = folder / logs
            mine.mkdir()
            environment = penstock_environment(mine, redis, first_port=first_port)
            environment["PENSTOCK_SERVING__LOG_PREDICTIONS"] = logs
            running.callback(penstock, environment, "down")
            prepare(mine, environment, given)
            url = json.loads(penstock(environment, "deploy", "card_fraud", "--json"))["predict_url"]
            servers[logs] = url, new_key(environment)
            closed(url, bodies, servers[logs][1], NUM_CONNECTIONS, 4)
        for turn in range(given.turns):
            for logs in (WITH, WITHOUT) if turn % 2 else (WITHOUT, WITH):
                found[logs].append(loaded(*servers[logs], bodies, given.seconds))
            print(f"turn {turn + 1} of {given.turns}", file=sys.stderr)
        written = {
            logs: sum(f.stat().st_size for f in (folder / logs).glob("storage/predictions/*/*/0*"))
            for logs in servers
        }
        assert written[WITH] > 1e6, "nothing was logged"
        assert not written[WITHOUT], "something was logged"
    report(found)


def new_key(environment: dict[str, str]) -> str:
    made = penstock(environment, "api-keys", "create", "bench", "--scope", "predict:*")
    return made.splitlines()[0]


def loaded(url: str, key: str, bodies: Path, seconds: int) -> tuple[float, float]:
    """Requests a second, and the replica's CPU milliseconds for a request."""
    before = replica_cpu_s()
    load = closed(url, bodies, key, NUM_CONNECTIONS, seconds)
    (pid,) = (
        pid for pid, spent in replica_cpu_s().items() if spent - before.get(pid, 0) > 0.2 * seconds
    )
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
