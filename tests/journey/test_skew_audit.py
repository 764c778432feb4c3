"""A day of payments is streamed while each is scored over HTTP; then the log is held to account."""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from card_fraud.simulator import START, simulate
from payments import (
    FIRST_DAY,
    SERVICE,
    TRANSACTIONS,
    USE_CASE,
    commit_payments,
    end_of_day,
    settings_in,
)
from penstock.cluster.local import LocalCluster, state_path
from penstock.data import tables
from penstock.data.events import JsonLinesTail
from penstock.data.events.opening import open_source
from penstock.errors import StoreEmptyError
from penstock.features.build import build
from penstock.features.online import OnlineReader
from penstock.features.store import apply
from penstock.features.stream_declarations import get_stream
from penstock.features.streaming import run as run_stream
from penstock.monitoring.skew_audit import audit
from penstock.monitoring.skew_report import AuditReport
from penstock.serving import server
from penstock.serving.client import predict
from penstock.serving.deploy import deploy, undeploy
from penstock.settings import Settings
from projects import Project
from small_model import seal_as, train_small
from streams import messages

pytestmark = pytest.mark.ray

MODEL = "checked_by_audit"
NUM_DAYS = 41
PREDICTIONS = f"{USE_CASE}.predictions"
FIELDS = ("CUSTOMER_ID", "TERMINAL_ID", "TX_DATETIME", "TX_AMOUNT")


@pytest.fixture(scope="module")
def payments(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """Payments of a small city; the windows of the last day are full."""
    files = simulate(
        tmp_path_factory.mktemp("city"), seed=3, num_customers=250, num_terminals=800,
        num_days=NUM_DAYS,
    )  # fmt: skip
    moved = pl.col("TX_DATETIME") - START + FIRST_DAY.replace(tzinfo=None)
    return pl.concat(pl.read_parquet(file) for file in files).with_columns(
        moved.dt.replace_time_zone("UTC").alias("TX_DATETIME")
    )


def of_last_day(payments: pl.DataFrame) -> pl.Series:
    return payments["TX_DATETIME"] >= end_of_day(NUM_DAYS - 2)


@pytest.fixture(scope="module")
def mine(
    project: Project,
    ray_cluster: LocalCluster,
    payments: pl.DataFrame,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Settings]:
    """A storage of its own with all but the last day, and a deployed model, on the run's one Ray."""
    settings = settings_in(tmp_path_factory.mktemp("audited"))
    commit_payments(settings, payments.filter(~of_last_day(payments)))
    build(settings, USE_CASE)
    apply(settings)
    shutil.copy(state_path(project.settings), state_path(settings))
    version = seal_as(settings, train_small(settings, "run-1", num_days=NUM_DAYS - 1), MODEL)
    try:
        deploy(settings, version, report=lambda _: None)
        yield settings
    finally:
        undeploy(settings, MODEL)


class Streamed:
    """A stream at work on a file that payments are appended to."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._file = folder / "payments.jsonl"
        self._file.touch()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(settings,))
        self._thread.start()

    def _run(self, settings: Settings) -> None:
        tail = JsonLinesTail(path=self._file)
        try:
            run_stream(
                settings,
                get_stream(settings, USE_CASE),
                lambda: open_source(settings, TRANSACTIONS, [tail]),
                should_stop=self._stop.is_set,
            )
        except BaseException as error:
            self._failure = error
            raise

    def send(self, payments: pl.DataFrame) -> None:
        with self._file.open("ab") as out:
            out.write(b"".join(line + b"\n" for line in messages(payments)))

    def end(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self._failure is None


def chunks(payments: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Cut payments in time order where a customer or a terminal would come again."""
    begin, seen = 0, set[tuple[str, int]]()
    for number, (customer, terminal) in enumerate(
        payments.select("CUSTOMER_ID", "TERMINAL_ID").iter_rows()
    ):
        pair = {("customer", customer), ("terminal", terminal)}
        if pair & seen:
            yield payments[begin:number]
            begin, seen = number, set()
        seen |= pair
    yield payments[begin:]


def ask(url: str, payments: pl.DataFrame) -> list[str]:
    """Score the payments over HTTP; gives the predictions' ids."""
    time_text = pl.col("TX_DATETIME").dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
    rows = payments.select(FIELDS).with_columns(time_text).to_dicts()
    answer = predict(url, MODEL, json.dumps({"rows": rows}))
    return [prediction["prediction_id"] for prediction in answer["predictions"]]


def wait_until_online(reader: OnlineReader, payments: pl.DataFrame) -> None:
    """Until each payment is the newest of its customer and of its terminal."""
    rows = payments.select(FIELDS).to_dicts()
    deadline_s = time.monotonic() + 60
    while True:
        # Empty until the stream has counted what the table has.
        with contextlib.suppress(StoreEmptyError):
            found = reader.read(rows)
            if all((times >= found.as_of_us).all() for times in found.event_us.values()):
                return
        assert time.monotonic() < deadline_s, "the stream does not bring events online"
        time.sleep(0.01)


def test_what_was_served_while_events_streamed_is_what_training_sees(
    mine: Settings, payments: pl.DataFrame, tmp_path: Path
):
    day = payments.filter(of_last_day(payments))
    assert day.height > 300
    url = server.url(mine)
    reader = OnlineReader.open(mine, USE_CASE, SERVICE)
    stream = Streamed(mine, tmp_path)
    served: list[str] = []
    try:
        for part in chunks(day):
            stream.send(part)
            wait_until_online(reader, part)
            served += ask(url, part)
    finally:
        stream.end()
        reader.close()

    build(mine, USE_CASE)
    done = Project(storage=mine.storage_path).must(
        "features", "audit", USE_CASE, "--json", "--out", f"{tmp_path}/found.json"
    )
    report = AuditReport.model_validate_json(done.stdout)
    assert (report.num_predictions, report.num_cells) == (day.height, 15 * day.height)
    assert report.num_by_reason == {}
    assert set(served) == set(tables.scan(mine, PREDICTIONS).collect()["prediction_id"])
    assert (tmp_path / "found.png").stat().st_size > 10_000

    # About the past, and before their payment is known: other rows than training's.
    ask(url, day.head(5).with_columns(pl.col("TX_DATETIME") - timedelta(days=3)))
    unknown = day.tail(5).with_columns(
        pl.col("TRANSACTION_ID") + 10**7, pl.col("TX_DATETIME") + timedelta(hours=1)
    )
    ask(url, unknown)
    commit_payments(mine, unknown)
    build(mine, USE_CASE)
    report = audit(mine, USE_CASE)
    assert report.num_predictions == day.height + 10
    assert report.num_by_reason.keys() == {"late", "ahead"}
    examples = {example.prediction_id for f in report.features for example in f.examples}
    assert examples.isdisjoint(served)
