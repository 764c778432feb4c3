"""Training sets ten times as large: Penstock's join at 20 M label rows beside itself at 2 M.

Both go from tables on disk (card payments, repeated over shifted entities until there are enough,
two views with six features each) to joined Parquet files on disk, in label order, as a training set
is built: the small one as one task, the large one spread over Ray. They take turns; reported are
medians and the largest memory that any one process had (`--repeat` times each).
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import polars as pl
import psutil
from _card_fraud import CUSTOMER, TERMINAL, read_payments

from penstock.cluster.tasks import runner
from penstock.features import point_in_time
from penstock.features.distributed_join import ROWS_PER_CHUNK, execute
from penstock.features.join_planner import SideSize, choose_path, row_bytes, side_size
from penstock.features.point_in_time import JoinPlan, ViewSide
from penstock.features.windows import compute

VIEWS = {"customer": CUSTOMER, "terminal": TERMINAL}
KEY, TIME = "TRANSACTION_ID", "TX_DATETIME"
BUDGET_BYTES = 4 << 30
_SHIFT = 100_000


class Sink:
    """Writes a chunk of joined rows; says how many and whether they are in label order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, number: int, joined: pl.DataFrame) -> int:
        joined.write_parquet(
            self.folder / f"{number:05}.parquet", compression="zstd", compression_level=1
        )
        return joined.height


def prepare(folder: Path, sizes: list[int], skew_percent: int) -> None:
    payments = read_payments(None).with_columns(pl.col(TIME).dt.replace_time_zone("UTC"))
    frames = {name: compute(payments, windows) for name, windows in VIEWS.items()}
    frames["labels"] = payments.select(KEY, "CUSTOMER_ID", "TERMINAL_ID", TIME)
    for size in sizes:
        for name, frame in frames.items():
            keys = [c for c in ("CUSTOMER_ID", "TERMINAL_ID", KEY) if c in frame.columns]
            shifts = {key: 10**9 if key == KEY else _SHIFT for key in keys}
            copies = [
                frame.with_columns(pl.col(key) + n * shift for key, shift in shifts.items())
                for n in range(-(-size // frame.height))
            ]
            whole = pl.concat(copies).sort(TIME, maintain_order=True).head(size)
            in_one = pl.int_range(pl.len()) % 100 < skew_percent
            whole = whole.with_columns(
                pl.when(in_one).then(pl.lit(0)).otherwise(pl.col(key)).alias(key)
                for key in keys
                if key != KEY
            )
            whole.write_parquet(folder / f"{name}-{size}.parquet", row_group_size=1 << 20)


def plan_of(folder: Path, size: int) -> tuple[JoinPlan, pl.LazyFrame]:
    labels = pl.scan_parquet(folder / f"labels-{size}.parquet")
    sides = [
        ViewSide(
            name=name,
            frame=pl.scan_parquet(folder / f"{name}-{size}.parquet"),
            join_keys=windows.entity,
            source_keys=windows.entity,
            event_time=TIME,
            features={feature: feature for feature in windows.feature_names()},
            ttl=timedelta(days=30),
        )
        for name, windows in VIEWS.items()
    ]
    return point_in_time.plan(labels.collect_schema(), sides, event_time=TIME), labels


def join(folder: Path, size: int, out: Path) -> str:
    """Join labels of that size by the path that the planner chooses; gives the path."""
    checked, labels = plan_of(folder, size)
    rows = SideSize(
        name="labels", num_rows=size, row_bytes=row_bytes(labels.collect_schema().dtypes())
    )
    path = choose_path(rows, [side_size(v) for v in checked.views], budget_bytes=BUDGET_BYTES)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    sink = Sink(out)
    starts = range(0, size, ROWS_PER_CHUNK)
    if path.kind == "one task":
        joined = point_in_time.execute_in_one_task(checked, labels.collect())
        counts = [sink(n, joined.slice(at, ROWS_PER_CHUNK)) for n, at in enumerate(starts)]
    else:
        chunks = [labels.slice(start, ROWS_PER_CHUNK) for start in starts]
        counts = list(
            execute(
                checked,
                chunks,
                sink,
                num_buckets=path.num_buckets,
                scratch=folder / "scratch",
                run=runner(),
            )
        )
    assert sum(counts) == size, f"{size - sum(counts):,} label rows are lost"
    return path.kind


def check_order(folder: Path, size: int, out: Path) -> None:
    labels = pl.scan_parquet(folder / f"labels-{size}.parquet").select(KEY).collect()
    joined = pl.scan_parquet(sorted(out.glob("*.parquet"))).select(KEY).collect()
    assert joined.equals(labels), "the label order is lost"


class PeakMemory:
    """Looks at this process and all below it, and keeps the largest that one of them had."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.2):
            for process in [me, *me.children(recursive=True)]:
                try:
                    memory = process.memory_info()
                except psutil.Error:
                    continue
                # Mapped files are the kernel's to drop; what a process holds is the rest.
                self.peak_bytes = max(self.peak_bytes, memory.rss - memory.shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000, help="label rows of the large one")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each")
    parser.add_argument("--skew-percent", type=int, default=0, help="rows of one single entity")
    given = parser.parse_args()
    small, large = given.rows // 10, given.rows
    import ray

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, [small, large], given.skew_percent)
        ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False, logging_level="error")
        took_s: dict[int, list[float]] = {small: [], large: []}
        peak_bytes, kinds = {}, {}
        for _ in range(given.repeat):
            for size in took_s:
                with PeakMemory() as memory:
                    began = time.perf_counter()
                    kinds[size] = join(folder, size, folder / "out")
                    took_s[size].append(time.perf_counter() - began)
                peak_bytes[size] = max(peak_bytes.get(size, 0), memory.peak_bytes)
                check_order(folder, size, folder / "out")
        ray.shutdown()
    print(f"{'label rows':>12} {'path':12} {'median s':>9} {'min s':>7} {'peak MB':>8}")
    for size, times in took_s.items():
        print(
            f"{size:12,} {kinds[size]:12} {statistics.median(times):9.2f} {min(times):7.2f} "
            f"{peak_bytes[size] / 1e6:8.0f}"
        )
    medians = {size: statistics.median(times) for size, times in took_s.items()}
    print(
        json.dumps(
            {
                "benchmark": "offline_scale",
                "num_rows": large,
                "skew_percent": given.skew_percent,
                "ratio_to_a_tenth": round(medians[large] / medians[small], 2),
                "peak_bytes_of_any_process": peak_bytes[large],
                "goals": {"ratio": 12, "peak_bytes": 5_000_000_000},
                "load_average": round(os.getloadavg()[0], 1),
            }
        )
    )


if __name__ == "__main__":
    main()
