"""Debian's Prometheus beside a real rollout: every panel of the dashboard, and every alert, is asked.

Version 2, on trial with half of the customers, has no score for those it knows.
"""

import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import polars as pl
import pytest
import yaml

from http_requests import JSON, send
from payments import make_payments
from penstock.cluster.local import LocalCluster
from penstock.errors import GateRefusedError
from penstock.serving import api_keys, rollout_files, server
from penstock.serving.deploy import deploy, undeploy
from penstock.serving.rolling import plan_rollout, roll_out
from penstock.serving.rollout import NUM_BUCKETS, bucket
from penstock.settings import Settings
from projects import REPO_ROOT, Project
from served_versions import no_number, register
from servers import Prometheus, running_prometheus
from small_model import prepare_on, train_small
from waiting import wait_for

pytestmark = [pytest.mark.servers]

MODEL = "watched"
DOCS = REPO_ROOT / "docs"
DASHBOARD = json.loads((DOCS / "grafana" / "serving.json").read_text())
PANELS = {panel["title"]: panel["targets"] for panel in DASHBOARD["panels"]}
ALERTS = {
    rule["alert"]: rule["expr"]
    for group in yaml.safe_load((DOCS / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
# Of the requests, days behind the last payment.
AT = datetime(2024, 5, 4, 10, tzinfo=UTC)
FIRST_COLUMN_LOOKED_UP = 3
NUM_KNOWN, NUM_UNKNOWN, NUM_REFUSED, NUM_NAMED = 20, 24, 4, 3
ROWS_TOGETHER = 5


@dataclass(frozen=True)
class Rolling:
    """A model behind keys, with a second version on trial."""

    settings: Settings
    rollout_id: str

    @property
    def port(self) -> int:
        return int(server.url(self.settings).rsplit(":", 1)[1])

    def is_new(self, customer: int) -> bool:
        """Whether the version on trial is asked first."""
        return bucket(self.rollout_id, customer) < NUM_BUCKETS / 2


@dataclass(frozen=True)
class Watched:
    """What was asked of the model, and the Prometheus that saw it."""

    prometheus: Prometheus
    sent: Counter
    """What one of the two equal rounds of requests was."""
    at_s: float
    """When all of it had been seen."""
    window_s: int
    """From then back to between the two rounds, so that rates are of the second alone."""
    num_counted: int
    """In the window."""

    def series(self, query: str) -> list[dict[str, Any]]:
        """Evaluate as Grafana would, with all versions of the model chosen."""
        filled = query.replace("$__rate_interval", f"{self.window_s}s")
        filled = filled.replace("$model_version", ".*").replace("$model", MODEL)
        return self.prometheus.query(filled, at_s=self.at_s)

    def panel(self, title: str) -> list[dict[tuple[str, ...], float]]:
        """Give what each query of a panel finds, by the values of the labels in their order."""
        return [
            {
                tuple(value for _, value in sorted(each["metric"].items())): float(each["value"][1])
                for each in self.series(target["expr"])
            }
            for target in PANELS[title]
        ]


@pytest.fixture(scope="module")
def rolling(
    project: Project, ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rolling]:
    open_to_all = prepare_on(project, tmp_path_factory.mktemp("watched"))
    serving = open_to_all.serving.model_copy(update={"require_key": True})
    mine = open_to_all.model_copy(update={"serving": serving})
    run = train_small(mine, "run-1")
    try:
        deploy(mine, register(mine, run, MODEL), report=lambda _: None)
        new = register(mine, run, MODEL, change=partial(no_number, feature=FIRST_COLUMN_LOOKED_UP))
        plan = plan_rollout(
            mine, new, shares_percent=(50,), hold_s=3600.0, guards=(), answer_within_ms=30_000.0
        )
        with ThreadPoolExecutor(1) as thread:
            rolled = thread.submit(roll_out, mine, new, plan, report=lambda _: None)
            try:
                wait_for(lambda: rolled.done() or phase(mine) == "shifting", timeout_s=180)
                found = rollout_files.find(mine, MODEL)
                assert found is not None
                yield Rolling(mine, found.id)
            finally:
                rollout_files.ask_back(mine, MODEL, "the test ends")
                assert isinstance(rolled.exception(), GateRefusedError)
    finally:
        undeploy(mine, MODEL)
        server.start(project.settings)


def phase(settings: Settings) -> str:
    found = rollout_files.find(settings, MODEL)
    return "none" if found is None else found.phase


@pytest.fixture(scope="module")
def watched(
    rolling: Rolling,
    project: Project,
    prometheus_programs: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Watched]:
    """Two equal rounds of requests, and all that Prometheus saw of them."""
    folder = tmp_path_factory.mktemp("prometheus")
    storage = {"PENSTOCK_STORAGE__ROOT": str(rolling.settings.storage_path)}
    shown = project.must("api-keys", "create", "prometheus", "--scope", "read", **storage).stdout
    (folder / "prometheus.token").write_text(shown.splitlines()[0])
    shutil.copy(DOCS / "prometheus" / "alerts.yml", folder)
    config = folder / "prometheus.yml"
    config.write_text(for_the_test((DOCS / "prometheus" / "prometheus.yml").read_text(), rolling))
    with running_prometheus(prometheus_programs, config, folder=folder) as prometheus:
        # Replicas follow the file of the rollout twice a second.
        wait_for(lambda: describe(rolling).get("percent") == 50)
        sent = send_round(rolling)
        wait_for(lambda: has_seen(prometheus, sent, 1))
        between_s, before = time.monotonic(), num_requests(prometheus)
        # So that the window of the rates begins with a sample of the first round.
        time.sleep(2)
        assert send_round(rolling) == sent
        wait_for(lambda: has_seen(prometheus, sent, 2))
        yield Watched(
            prometheus=prometheus,
            sent=sent,
            at_s=time.time(),
            window_s=int(time.monotonic() - between_s),
            num_counted=num_requests(prometheus) - before,
        )


def for_the_test(config: str, rolling: Rolling) -> str:
    """The documented configuration with the lines for keys, on our port, two looks a second."""
    with_key = re.sub(r"^( +)# (authorization:|  credentials_file:)", r"\1\2", config, flags=re.M)
    for before, after in {
        "../../.penstock/prometheus.token": "prometheus.token",
        "127.0.0.1:8000": f"127.0.0.1:{rolling.port}",
        "15s": "500ms",
    }.items():
        assert before in with_key
        with_key = with_key.replace(before, after)
    return with_key


def headers(rolling: Rolling) -> dict[str, str]:
    return {**JSON, "Authorization": f"Bearer {api_keys.own_token(rolling.settings)}"}


def describe(rolling: Rolling) -> dict[str, Any]:
    page = send(rolling.port, f"/v1/models/{MODEL}", method="GET", headers=headers(rolling))
    return page.json.get("rollout", {})


def send_round(rolling: Rolling) -> Counter:
    """Send requests of every kind, one behind the other; gives what they must have been."""
    path = f"/v1/models/{MODEL}/predict"
    sent: Counter = Counter()

    def ask(rows: list[dict[str, Any]], to: str = path) -> None:
        reply = send(rolling.port, to, json.dumps({"rows": rows}), headers=headers(rolling))
        version = reply.json.get("version", 1)
        sent["code", str(version), str(reply.status)] += 1
        if reply.status == 200:
            sent["scored", str(version)] += 1
            sent["rows", str(version)] += len(rows)

    def row(customer: int) -> dict[str, Any]:
        at = AT.isoformat().replace("+00:00", "Z")
        return {"CUSTOMER_ID": customer, "TERMINAL_ID": 2, "TX_DATETIME": at, "TX_AMOUNT": 12.5}

    for customer in range(NUM_KNOWN):
        ask([row(customer)])
        sent["failed"] += rolling.is_new(customer)
    ask([row(customer) for customer in range(ROWS_TOGETHER)])
    sent["failed"] += rolling.is_new(0)
    for start, is_new in ((1000, False), (2000, True)):
        unknown = [n for n in range(start, start + 500) if rolling.is_new(n) == is_new]
        for customer in unknown[: NUM_UNKNOWN // 2]:
            ask([row(customer)])
    for _ in range(NUM_REFUSED):
        ask([{"CUSTOMER_ID": 1}])
    for _ in range(NUM_NAMED):
        ask([row(1)], to=f"/v1/models/{MODEL}/versions/2/predict")
        sent["failed"] += 1
    # The failures of version 2 were looked up by it, and counted as scored before their NaN was.
    sent["scored", "2"] += sent["failed"]
    return sent


def num_requests(prometheus: Prometheus) -> int:
    return int(prometheus.number(f'sum(ray_penstock_predict_requests_total{{model="{MODEL}"}})'))


def has_seen(prometheus: Prometheus, sent: Counter, num_rounds: int) -> bool:
    """Whether all that the replica tells has arrived; what it tells is told in several parts."""
    scored = "ray_penstock_predict_batch_requests_sum_total"
    wanted = {
        f'sum({scored}{{model="{MODEL}", model_version="1"}})': sent["scored", "1"],
        f'sum({scored}{{model="{MODEL}", model_version="2"}})': sent["scored", "2"],
        f'sum(ray_penstock_rollout_failed_requests_total{{model="{MODEL}"}})': sent["failed"],
        f'sum(ray_penstock_predict_requests_total{{model="{MODEL}", code="503"}})': NUM_NAMED,
    }
    time.sleep(0.2)
    return all(prometheus.number(query) == num_rounds * number for query, number in wanted.items())


def share(parts: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """Each value's part of all: rates reach a little beyond their window, all by the same factor."""
    return {key: value / sum(parts.values()) for key, value in parts.items()}


def test_promtool_finds_no_fault(prometheus_programs: tuple[str, str]):
    config = str(DOCS / "prometheus" / "prometheus.yml")
    _, promtool = prometheus_programs
    done = subprocess.run(
        [promtool, "check", "config", config], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.ray
@pytest.mark.slow
class TestPrometheus:
    def test_what_was_sent_is_what_was_counted(self, watched: Watched):
        num_sent = sum(number for key, number in watched.sent.items() if key[0] == "code")
        assert num_sent == NUM_KNOWN + 1 + NUM_UNKNOWN + NUM_REFUSED + NUM_NAMED
        assert watched.num_counted == num_sent

    @pytest.mark.parametrize("title", PANELS)
    def test_every_query_of_a_panel_has_finite_data(self, watched: Watched, title: str):
        for target, found in zip(PANELS[title], watched.panel(title), strict=True):
            assert found, target["expr"]
            assert all(0 <= value < float("inf") for value in found.values()), target["expr"]
            labels = {name for each in watched.series(target["expr"]) for name in each["metric"]}
            in_legend = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            assert in_legend <= labels, "a legend names labels that the series have"

    def test_the_variables_offer_the_model_and_both_versions(self, watched: Watched):
        offered = {}
        for variable in DASHBOARD["templating"]["list"]:
            if variable["type"] == "query":
                asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert asked is not None
                selector = asked[1].replace("$model", MODEL)
                path = f"label/{asked[2]}/values"
                offered[variable["name"]] = watched.prometheus.get(path, **{"match[]": selector})
        assert MODEL in offered["model"]
        assert offered["model_version"] == ["1", "2"]

    def test_requests_by_code_and_version_are_those_that_were_sent(self, watched: Watched):
        (found,) = watched.panel("Requests per second")
        codes = {key: number for key, number in watched.sent.items() if key[0] == "code"}
        wanted = share({(code, MODEL, version): n for (_, version, code), n in codes.items()})
        assert share(found) == pytest.approx(wanted)
        assert sum(found.values()) * watched.window_s == pytest.approx(sum(codes.values()), rel=0.3)

    def test_errors_and_refusals_are_told_apart(self, watched: Watched):
        failed, refused = watched.panel("Error share")
        num_old = sum(n for key, n in watched.sent.items() if key[:2] == ("code", "1"))
        assert failed == pytest.approx({(MODEL, "1"): NUM_NAMED / num_old, (MODEL, "2"): 0})
        assert refused == pytest.approx({(MODEL, "1"): NUM_REFUSED / num_old, (MODEL, "2"): 0})

    def test_latency_rises_with_its_quantile(self, watched: Watched):
        p50, p95, p99 = watched.panel("Latency")
        for version in ("1", "2"):
            key = (MODEL, version)
            assert 0 < p50[key] <= p95[key] <= p99[key] <= 5000

    def test_batches_have_the_size_of_the_requests(self, watched: Watched):
        requests, _, rows, _ = watched.panel("Batch size")
        assert requests == pytest.approx({(MODEL, "1"): 1, (MODEL, "2"): 1})
        sent = watched.sent
        assert rows[MODEL, "1"] == pytest.approx(sent["rows", "1"] / sent["scored", "1"])

    def test_the_queue_is_empty_in_the_end(self, watched: Watched):
        in_flight, mean_in_flight, waiting = watched.panel("Queue")
        assert in_flight == {(MODEL,): 0}
        assert 0 < mean_in_flight[MODEL,] < 1
        assert waiting == {(MODEL, "1"): 0, (MODEL, "2"): 0}

    def test_customers_that_nobody_knows_miss_their_features(self, watched: Watched):
        (found,) = watched.panel("Missing features")
        wanted = NUM_UNKNOWN / 2 / watched.sent["rows", "1"]
        old = {feature: part for (feature, _, version), part in found.items() if version == "1"}
        assert len(old) == 6
        assert old == pytest.approx(dict.fromkeys(old, wanted))
        assert all(feature.startswith("CUSTOMER_ID_") for feature in old)

    def test_features_are_as_old_as_the_last_payment_of_their_customer(self, watched: Watched):
        _, _, mean = watched.panel("Feature age")
        last = dict(
            make_payments(3_000)
            .group_by("CUSTOMER_ID")
            .agg(pl.col("TX_DATETIME").max())
            .iter_rows()
        )
        asked = [*range(NUM_KNOWN), *range(ROWS_TOGETHER)]
        ages_s = [(AT - last[customer]).total_seconds() for customer in asked]
        found = mean[MODEL, "1", "card_fraud_customer"]
        assert found == pytest.approx(sum(ages_s) / len(ages_s))

    def test_nothing_is_left_out_of_the_prediction_log(self, watched: Watched):
        _, unlogged = watched.panel("Rows per second")
        assert unlogged == {(MODEL, "1"): 0, (MODEL, "2"): 0}

    def test_the_rollout_has_its_share_and_its_failures(self, watched: Watched):
        planned, answered = watched.panel("Rollout share")
        assert planned == {(MODEL, "2"): 0.5}
        good = {v: watched.sent["code", v, "200"] for v in ("1", "2")}
        wanted = {(MODEL, version): number for version, number in good.items()}
        assert answered == pytest.approx(share(wanted))
        (failures,) = watched.panel("Failures on trial")
        (requests,) = watched.panel("Requests per second")
        sent = watched.sent
        assert failures[MODEL, "2"] / requests["422", MODEL, "1"] == pytest.approx(
            sent["failed"] / NUM_REFUSED
        )

    def test_every_replica_is_healthy_and_every_node_heard(self, watched: Watched):
        assert watched.panel("Replicas") == [{(MODEL,): 1}, {(MODEL,): 1}]
        (silent,) = watched.panel("Silent nodes")
        assert list(silent.values()) == [0]

    def test_alerts_say_what_is_wrong_and_nothing_else(self, watched: Watched):
        wrong = {name for name, query in ALERTS.items() if watched.series(query)}
        assert wrong == {
            "PenstockErrors",
            "PenstockFeatureMissing",
            "PenstockFeaturesOld",
            "PenstockTrialFails",
        }
        loaded = watched.prometheus.get("rules")["groups"]
        assert {r["name"] for group in loaded for r in group["rules"]} == ALERTS.keys()
        assert {r["health"] for group in loaded for r in group["rules"]} == {"ok"}

    def test_a_scrape_without_the_key_is_refused(self, rolling: Rolling):
        assert send(rolling.port, "/metrics", method="GET").status == 401
