"""Batch scoring: rows a second beside plain onnxruntime in a loop, and what kill -9 leaves.

    scripts/bench score [--rows 5000000] [--kills 5] [--estimator xgboost] [--peer-rows 500000]

The peer runs the model's own graph, on one thread, over features that lie in memory already as one
float64 matrix, in blocks of the size that suits it best; it reads, joins and writes nothing. Ours
is all of `penstock score`: the package's verification, reading the table, the point-in-time join of
two feature tables, the graph, prediction ids, the parts on disk and the commit with its statistics.
It is measured in one process on one core, in one process on all cores, and as the command, which
starts a Ray job first. Three ratios come of it. Per core: the CPU seconds of the plain loop over
those of ours, so that what else the machine does meets neither. By the clock: all of the work on
all cores beside the plain loop on one. And the command, from the shell and back, beside that loop.
Then the command is killed with its job by SIGKILL at seeded moments and given again; the table that
is left is held against the undisturbed one, row by row.
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
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _card_fraud import ROOT, read_payments

TABLE = "card_fraud.transactions"
ON_ONE_CORE, ON_ALL_CORES, UNDISTURBED, KILLED = (
    f"card_fraud.scores_{n}" for n in ("core", "cores", "whole", "killed")
)
BLOCKS = (64, 256, 1024, 4096, 16_384, 65_536)
GOAL = 0.8
NUM_RUNS = 3


def penstock_environment(folder: Path) -> dict[str, str]:
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "RAY_"))}
    return mine | {
        "PENSTOCK_PROJECT_ROOT": str(ROOT),
        "PENSTOCK_STORAGE__ROOT": str(folder / "storage"),
        "PENSTOCK_SERVING__PORT": "29000",
        "PENSTOCK_RAY__GCS_PORT": "29500",
        "PENSTOCK_RAY__DASHBOARD_PORT": "29510",
        "PENSTOCK_RAY__METRICS_PORT": "29520",
    }


def start(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    print(f"$ penstock {' '.join(arguments)}", file=sys.stderr)
    return subprocess.Popen(
        [Path(sys.executable).parent / "penstock", *arguments],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def penstock(environment: dict[str, str], *arguments: str) -> str:
    process = start(environment, *arguments)
    out, errors = process.communicate()
    if process.returncode:
        sys.exit(f"penstock {' '.join(arguments)} ended with {process.returncode}\n{errors}")
    return out


def many_payments(num_rows: int) -> pl.DataFrame:
    """The published months, one copy behind the other until there are enough."""
    payments = read_payments().with_columns(
        pl.col("TX_DATETIME").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    )
    times = payments["TX_DATETIME"]
    first, last = times.min(), times.max()
    period = timedelta(days=(last.date() - first.date()).days + 1)  # type: ignore[union-attr,operator]
    copies = [
        payments.with_columns(
            pl.col("TRANSACTION_ID") + n * payments.height, pl.col("TX_DATETIME") + n * period
        )
        for n in range(-(-num_rows // payments.height))
    ]
    return pl.concat(copies).head(num_rows)


def prepare(environment: dict[str, str], given: argparse.Namespace) -> Any:
    """A table of so many rows, its features, and a champion."""
    os.environ.update({k: v for k, v in environment.items() if k.startswith("PENSTOCK_")})
    from penstock.data import tables
    from penstock.settings import load_settings

    settings = load_settings()
    tables.commit(
        settings,
        TABLE,
        many_payments(given.rows),
        mode="append",
        partition_by="month",
        event_time="TX_DATETIME",
    )
    penstock(environment, "up")
    for step in ("apply", "build"):
        penstock(environment, "features", step, "card_fraud")
    penstock(environment, "train", "card_fraud", "--estimator", given.estimator)
    penstock(environment, "models", "promote", "card_fraud")
    return settings


def plain_loop(settings: Any, num_rows: int) -> float:
    """Rows a CPU second of the graph alone, in its best block size; median of the runs."""
    import onnxruntime

    from penstock.features.historical import HistoricalReader
    from penstock.registry.package import verify
    from penstock.registry.versions import resolve

    model = resolve(settings, "card_fraud", None)
    package = verify(Path(model.path), settings, digest=model.digest)
    reader = HistoricalReader(
        settings, use_case="card_fraud", service=package.signature.feature_service, table=TABLE
    )
    part = next(p for p in reader.slices(None, None, max_rows=num_rows)[::-1])
    features = reader.read(part).select(
        pl.col(name).cast(pl.Float64).fill_null(np.nan) for name in package.signature.feature_names
    )
    matrix = features.to_numpy(order="c")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(package.onnx, options, ["CPUExecutionProvider"])

    def rate(block: int) -> float:
        began_s = time.process_time()
        for at in range(0, len(matrix), block):
            session.run(["score"], {"features": matrix[at : at + block]})
        return len(matrix) / (time.process_time() - began_s)

    return max(statistics.median(rate(block) for _ in range(NUM_RUNS)) for block in BLOCKS)


def in_one_process(environment: dict[str, str], out: str, *, one_core: bool) -> tuple[float, float]:
    """Rows a second and rows a CPU second of the whole work."""
    pinned: list[str] = []
    limits: dict[str, str] = {}
    if one_core:
        pinned = (
            ["taskset", "-c", str((os.cpu_count() or 1) - 1)] if shutil.which("taskset") else []
        )
        limits = {"POLARS_MAX_THREADS": "1", "TOKIO_WORKER_THREADS": "1"}
    program = ROOT / "benchmarks" / "_score_process.py"
    done = subprocess.run(
        [*pinned, sys.executable, program, TABLE, out],
        env=environment | limits,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    num_rows, took_s, took_cpu_s = (float(word) for word in done.stdout.split()[-3:])
    where = "one core" if one_core else "all cores"
    print(f"{where}: {took_s:.1f} s, {took_cpu_s:.1f} CPU s", file=sys.stderr)
    return num_rows / took_s, num_rows / took_cpu_s


def arguments_of(out: str) -> list[str]:
    return ["score", "card_fraud", "--table", TABLE, "--out", out, "--json"]


@dataclass(frozen=True)
class Kills:
    """What the kills met, and what the last command said."""

    parts_at_each: list[int]
    report: dict[str, Any]
    last_s: float


def through_kills(
    environment: dict[str, str], storage: Path, *, num_slices: int, num_kills: int
) -> Kills:
    """Give the same command until it ends; the first ones are killed, and their jobs with them.

    Each kill but the last comes a moment after a part that was not there before, so that the next
    one finds work that was done and work that was not; the last one comes in the commit.
    """
    chance = random.Random(7)
    parts_at_each: list[int] = []
    for number in range(num_kills):
        command = start(environment, *arguments_of(KILLED))
        pid = wait_for_driver(command)
        if number + 1 < num_kills:
            before = parts_at_each[-1] if parts_at_each else 0
            wait_until(lambda before=before: num_parts(storage) > before, command)
            time.sleep(chance.uniform(0, 2))
        else:
            wait_until(lambda: num_parts(storage) == num_slices, command)
            time.sleep(chance.uniform(0, 2))
        for each in (command.pid, pid):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        command.communicate()
        parts_at_each.append(num_parts(storage))
    began_s = time.perf_counter()
    report = json.loads(penstock(environment, *arguments_of(KILLED)))
    return Kills(parts_at_each, report, time.perf_counter() - began_s)


def num_parts(storage: Path) -> int:
    return len(list((storage / "scoring").rglob("*.arrow")))


def wait_until(happened: Callable[[], bool], command: "subprocess.Popen[str]") -> None:
    while not happened():
        if command.poll() is not None:
            sys.exit(f"the command has ended by itself:\n{command.communicate()[1]}")
        time.sleep(0.05)


def wait_for_driver(command: "subprocess.Popen[str]") -> int:
    """The process of the job that the command submitted, found by its command line."""
    while command.poll() is None:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"jobs/score.py" in words and KILLED.encode() in words:
                    return int(folder.name)
        time.sleep(0.05)
    sys.exit(f"the command has ended by itself:\n{command.communicate()[1]}")


def compare(settings: Any, num_rows: int) -> dict[str, int]:
    """Hold the table that the kills left against the undisturbed one."""
    from penstock.data import tables

    def read(table: str) -> pl.DataFrame:
        columns = ["TRANSACTION_ID", "score", "prediction_id"]
        return tables.scan(settings, table).select(columns).sort("TRANSACTION_ID").collect()

    left, whole = read(KILLED), read(UNDISTURBED)
    ids = left["TRANSACTION_ID"]
    return {
        "rows_left": left.height,
        "lost": num_rows - ids.n_unique(),
        "double": left.height - ids.n_unique(),
        "differ": 0 if left.equals(whole) else 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--estimator", default="xgboost")
    parser.add_argument("--peer-rows", type=int, default=500_000)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        folder = Path(name)
        environment = penstock_environment(folder)
        try:
            settings = prepare(environment, given)
            plain_per_s = plain_loop(settings, given.peer_rows)
            _, core_per_s = in_one_process(environment, ON_ONE_CORE, one_core=True)
            cores_per_s, _ = in_one_process(environment, ON_ALL_CORES, one_core=False)
            began_s = time.perf_counter()
            done = json.loads(penstock(environment, *arguments_of(UNDISTURBED)))
            whole_s = time.perf_counter() - began_s
            kills = through_kills(
                environment,
                folder / "storage",
                num_slices=done["num_slices"],
                num_kills=given.kills,
            )
            counts = compare(settings, given.rows)
        finally:
            penstock(environment, "down")
    report(given, plain_per_s, core_per_s, cores_per_s, whole_s, kills, counts)


def report(
    given: argparse.Namespace,
    plain_per_s: float,
    core_per_s: float,
    cores_per_s: float,
    whole_s: float,
    kills: Kills,
    counts: dict[str, int],
) -> None:
    command_per_s = given.rows / whole_s
    beyond_us = 1e6 / core_per_s - 1e6 / plain_per_s
    print(f"{given.rows:,} rows, {given.estimator}, {os.cpu_count()} cores")
    print(f"{'':58} {'rows/s':>10}")
    for label, per_s in (
        ("plain onnxruntime in a loop, one core, features in memory", plain_per_s),
        ("penstock, all of the work on one core", core_per_s),
        (f"penstock, all of the work on {os.cpu_count()} cores", cores_per_s),
        ("penstock score, the command with its Ray job", command_per_s),
    ):
        print(f"{label:58} {per_s:10,.0f}")
    print(f"per core, CPU seconds of the plain loop over ours: {core_per_s / plain_per_s:.2f}")
    print(
        f"by the clock, {os.cpu_count()} cores over the plain loop on one: "
        f"{cores_per_s / plain_per_s:.2f}; of the command {command_per_s / plain_per_s:.2f}"
    )
    print(f"beyond the graph, one core: {beyond_us:.1f} us a row")
    print(f"parts there after each kill: {kills.parts_at_each} of {kills.report['num_slices']}")
    found, num_slices = kills.report["num_slices_found"], kills.report["num_slices"]
    print(f"the last command found {found} of {num_slices} and took {kills.last_s:.1f} s")
    print("  ".join(f"{name} {value:,}" for name, value in counts.items()))
    line = {
        "benchmark": "score",
        "rows": given.rows,
        "estimator": given.estimator,
        "plain_rows_per_s": round(plain_per_s),
        "rows_per_s_on_one_core": round(core_per_s),
        "rows_per_s_on_all_cores": round(cores_per_s),
        "rows_per_s_of_the_command": round(command_per_s),
        "ratio_per_core": round(core_per_s / plain_per_s, 2),
        "ratio_by_the_clock": round(cores_per_s / plain_per_s, 2),
        "ratio_of_the_command": round(command_per_s / plain_per_s, 2),
        "us_a_row_beyond_the_graph": round(beyond_us, 2),
        "kills": given.kills,
        **counts,
        "goal": GOAL,
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
