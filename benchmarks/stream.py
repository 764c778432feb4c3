"""Streams: events a second, from event to online row, and what five kills leave.

    scripts/bench stream [--events 200000] [--history 500000] [--rate 500] [--kills 5]

Card payments come from a Kafka (librdkafka's mock cluster, the real protocol over TCP) in this
process; the stream is a process of its own, with SQLite as the online store. First as fast as it
goes, then at a steady rate while the online store is read to see when each payment's row is there;
then payments go on while the stream is killed with SIGKILL and started again. At the end the table
and all online rows are held against batch. The peer is what is written by hand: for each payment
pandas computes both entities' windows and Feast's `push` writes them to its SQLite store; it keeps
no events, and nothing is counted once there.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from _card_fraud import CUSTOMER, ROOT, TERMINAL, read_payments

TABLE = "card_fraud.transactions"
VIEWS = {"card_fraud_customer": CUSTOMER, "card_fraud_terminal": TERMINAL}
# The mock broker keeps little, so the producer stays this close to the stream.
MAX_AHEAD = 40_000
NUM_PARTITIONS = 4
WAIT_S = 120.0
LOOK_S = 0.002


class Kafka:
    """The mock cluster and its producer; counts what it sent to each partition."""

    def __init__(self) -> None:
        from confluent_kafka import Producer

        self._producer = Producer(
            {
                "test.mock.num.brokers": 1,
                "bootstrap.servers": "replaced",
                "compression.type": "lz4",
                "linger.ms": 1,
                "log_level": 3,
            }
        )
        brokers = self._producer.list_topics(TABLE, timeout=10).brokers.values()
        self.options = {
            "bootstrap.servers": ",".join(f"{b.host}:{b.port}" for b in brokers),
            "log_level": "3",
            # A broker answers a waiting fetch as soon as there is an event; the mock at its end.
            "fetch.wait.max.ms": "5",
        }
        self.sent = dict.fromkeys(range(NUM_PARTITIONS), 0)

    def send(self, event: bytes, customer: int) -> None:
        partition = customer % NUM_PARTITIONS
        while True:
            try:
                self._producer.produce(TABLE, event, partition=partition)
                break
            except BufferError:
                self._producer.poll(0.05)
        self.sent[partition] += 1

    def flush(self) -> None:
        assert self._producer.flush(30) == 0


class Stream:
    """The process, and what it tells in the online store."""

    def __init__(self, settings: Any, environment: dict[str, str], folder: Path) -> None:
        self._settings = settings
        self._environment = environment
        self._log = folder / "stream.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, flush_interval_s: float) -> None:
        command = [
            sys.executable,
            ROOT / "benchmarks" / "_stream_process.py",
            str(flush_interval_s),
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, cwd=ROOT, stdout=log, stderr=log
            )

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and wait until all is in the table."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=WAIT_S)

    def num_applied(self) -> int:
        from penstock.features.streaming import applied_positions

        if self._process is not None and self._process.poll() is not None:
            sys.exit(f"the stream has ended:\n{self._log.read_text()[-3000:]}")
        return sum(applied_positions(self._settings, TABLE).values())

    def wait_for(self, num_events: int) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while self.num_applied() < num_events:
            if time.monotonic() > deadline_s:
                sys.exit(f"events are not online:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.02)


class Online:
    """Reads the rows that a replica would read."""

    def __init__(self, settings: Any) -> None:
        from feast.infra.online_stores.helpers import get_online_store_from_config

        from penstock.features.store import open_store, registered_view

        store = open_store(settings)
        self._config = store.config
        self._rows: Any = get_online_store_from_config(self._config.online_store)
        self._views = {name: registered_view(store, store.get_feature_view(name)) for name in VIEWS}

    def read(self, view: str, entities: list[int], features: list[str]) -> Any:
        from penstock.features import entity_keys

        (column,) = VIEWS[view].entity
        keys = entity_keys.encode({column: entities})
        return self._rows.read_rows(self._config, self._views[view], keys, features)

    def event_us(self, customers: list[int]) -> Any:
        return self.read("card_fraud_customer", customers, []).event_us


def event_of(payment: dict[str, Any]) -> bytes:
    import orjson

    return orjson.dumps({**payment, "TX_DATETIME": payment["TX_DATETIME"].isoformat()})


def prepare(folder: Path, kafka: Kafka, history: pl.DataFrame) -> tuple[Any, dict[str, str]]:
    """A project with some months of payments, its features declared and built."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("PENSTOCK_", "RAY_"))}
    environment = mine | {
        "PENSTOCK_PROJECT_ROOT": str(ROOT),
        "PENSTOCK_STORAGE__ROOT": str(folder / "storage"),
        "PENSTOCK_KAFKA": json.dumps(kafka.options),
    }
    os.environ.update({k: v for k, v in environment.items() if k.startswith("PENSTOCK_")})
    from penstock.data import tables
    from penstock.features.store import apply
    from penstock.settings import load_settings

    settings = load_settings()
    tables.commit(
        settings, TABLE, history, mode="append", partition_by="month", event_time="TX_DATETIME"
    )
    apply(settings)
    return settings, environment


def at_full_speed(kafka: Kafka, stream: Stream, payments: list[dict[str, Any]]) -> float:
    """Events a second from the first one sent to the last one online."""
    events = [(event_of(payment), payment["CUSTOMER_ID"]) for payment in payments]
    before = stream.num_applied()
    began_s = time.perf_counter()
    for number, (event, customer) in enumerate(events):
        if number % 5_000 == 0:
            while number - (stream.num_applied() - before) > MAX_AHEAD:
                time.sleep(0.01)
        kafka.send(event, customer)
    kafka.flush()
    stream.wait_for(before + len(events))
    return len(events) / (time.perf_counter() - began_s)


def at_steady_rate(
    kafka: Kafka, online: Online, payments: list[dict[str, Any]], rate: int
) -> list[float]:
    """Seconds from the sending of each payment to its row in the online store."""
    waiting: list[tuple[int, int, float]] = []
    delays_s: list[float] = []
    began_s = time.perf_counter()
    number = 0
    while number < len(payments) or waiting:
        now_s = time.perf_counter()
        while number < len(payments) and now_s >= began_s + number / rate:
            payment = payments[number]
            at_us = int(payment["TX_DATETIME"].timestamp()) * 1_000_000
            waiting.append((payment["CUSTOMER_ID"], at_us, time.perf_counter()))
            kafka.send(event_of(payment), payment["CUSTOMER_ID"])
            number += 1
        if waiting:
            found_us = online.event_us([customer for customer, _, _ in waiting])
            seen_s = time.perf_counter()
            is_there = [
                found >= at_us for found, (_, at_us, _) in zip(found_us, waiting, strict=True)
            ]
            pairs = list(zip(waiting, is_there, strict=True))
            delays_s += [seen_s - sent_s for (_, _, sent_s), there in pairs if there]
            waiting = [entry for entry, there in pairs if not there]
            if waiting and seen_s - waiting[0][2] > WAIT_S:
                sys.exit("a payment did not come online")
        time.sleep(LOOK_S)
    return delays_s


def through_kills(
    kafka: Kafka, stream: Stream, payments: list[dict[str, Any]], num_kills: int
) -> list[float]:
    """Send payments while the stream is killed again and again; seconds until it reads again."""
    chance = random.Random(7)
    before = sum(kafka.sent.values())
    share = len(payments) // (num_kills + 1)
    away_s = []
    for part in range(num_kills + 1):
        rows = payments[part * share :] if part == num_kills else payments[part * share :][:share]
        for payment in rows[: share // 2]:
            kafka.send(event_of(payment), payment["CUSTOMER_ID"])
        kafka.flush()
        if part < num_kills:
            # Somewhere between the first of them read and the last of them flushed.
            time.sleep(chance.uniform(0.0, 1.5))
            stream.kill()
            began_s = time.perf_counter()
            stream.start(flush_interval_s=1.0)
        for payment in rows[share // 2 :]:
            kafka.send(event_of(payment), payment["CUSTOMER_ID"])
        kafka.flush()
        if part < num_kills:
            stream.wait_for(before + part * share + len(rows))
            away_s.append(time.perf_counter() - began_s)
    stream.wait_for(before + len(payments))
    return away_s


def compare(settings: Any, online: Online, expected: pl.DataFrame) -> dict[str, int]:
    """Hold the table and every online row against batch."""
    from penstock.data import tables
    from penstock.features.windows import compute

    ids = tables.scan(settings, TABLE).select("TRANSACTION_ID").collect()["TRANSACTION_ID"]
    counts = {
        "lost": len(set(expected["TRANSACTION_ID"]) - set(ids)),
        "double": len(ids) - ids.n_unique(),
        "online_rows": 0,
        "online_rows_off": 0,
    }
    for view, windows in VIEWS.items():
        (entity,) = windows.entity
        computed = compute(expected, windows).sort("TX_DATETIME").group_by(entity).last()
        features = [name for name in computed.columns if name not in (entity, "TX_DATETIME")]
        found = online.read(view, computed[entity].to_list(), features)
        right = computed.select(features).cast(pl.Float64).to_numpy()
        same = np.isclose(found.values, right, rtol=1e-9, atol=1e-9, equal_nan=True).all(axis=1)
        same &= found.event_us == computed["TX_DATETIME"].dt.timestamp("us").to_numpy()
        counts["online_rows"] += len(same)
        counts["online_rows_off"] += int((~same).sum())
    return counts


@contextmanager
def running(stream: Stream) -> Iterator[None]:
    try:
        yield
    finally:
        stream.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--history", type=int, default=500_000, help="payments in the table before")
    parser.add_argument("--events", type=int, default=200_000, help="as fast as it goes")
    parser.add_argument("--rate", type=int, default=500, help="payments a second, steadily")
    parser.add_argument("--seconds", type=int, default=20, help="of the steady rate")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--peer-events", type=int, default=300)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    num_killed_through = 3_000 * (given.kills + 1)
    sizes = [given.history, given.events, given.rate * given.seconds, num_killed_through]
    payments = read_payments(sum(sizes)).with_columns(
        pl.col("TX_DATETIME").cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    )
    starts = np.cumsum([0, *sizes])
    history, *parts = (payments[int(a) : int(b)] for a, b in pairwise(starts))
    fast, steady, killed = (part.to_dicts() for part in parts)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        folder, kafka = Path(name), Kafka()
        settings, environment = prepare(folder, kafka, history)
        stream = Stream(settings, environment, folder)
        with running(stream):
            stream.start(flush_interval_s=30.0)
            # The first one waits for the states of the history, and for the group to form.
            kafka.send(event_of(fast[0]), fast[0]["CUSTOMER_ID"])
            kafka.flush()
            stream.wait_for(1)
            per_s = at_full_speed(kafka, stream, fast[1:])
            online = Online(settings)
            delays_ms = sorted(1e3 * s for s in at_steady_rate(kafka, online, steady, given.rate))
            away_s = through_kills(kafka, stream, killed, given.kills)
        counts = compare(settings, online, payments)
        from _stream_peer import push_by_hand

        peer_per_s = push_by_hand(folder / "peer", history, parts[0].head(given.peer_events))
    p50, p99 = (float(np.percentile(delays_ms, share)) for share in (50, 99))
    print(f"{'':42} {'penstock':>10} {'by hand':>10}")
    print(f"{'events/s, event to online row':42} {per_s:10,.0f} {peer_per_s:10,.0f}")
    print(f"{f'event to online row at {given.rate}/s: p50, ms':42} {p50:10.0f}")
    print(f"{'p99, ms':42} {p99:10.0f}")
    away = f"{given.kills} kills: median s until all was online again"
    print(f"{away:42} {statistics.median(away_s):10.1f}")
    for label, value in counts.items():
        print(f"{label:42} {value:10,}")
    line = {
        "benchmark": "stream",
        "events_per_s": round(per_s),
        "peer_events_per_s": round(peer_per_s, 1),
        "ratio": round(per_s / peer_per_s, 1),
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
        "kills": given.kills,
        **counts,
        "load_average": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(line))
    if counts["lost"] or counts["double"] or counts["online_rows_off"]:
        sys.exit("what the stream left is not what batch gives")


if __name__ == "__main__":
    main()
