"""Registered versions of a small real model, good ones and bad ones, and callers that ask them."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from http_requests import JSON, send
from penstock.settings import Settings
from small_model import SmallRun

if TYPE_CHECKING:
    from penstock.registry.versions import ModelVersion

NUM_CUSTOMERS = 40


def register(
    settings: Settings,
    run: SmallRun,
    model: str,
    *,
    change: Callable[[bytes], bytes] = lambda graph: graph,
    **serving: object,
) -> "ModelVersion":
    """Seal the run as the next version of a model of this name, its graph changed, and register it.

    Without the gate and the checks of a real registration: bad versions are the point.
    """
    from penstock.registry.package import read_bundle, seal
    from penstock.registry.versions import ModelRegistry, VersionFacts

    registry = ModelRegistry(settings)
    entry = registry.add_entry(model, f"{run.run_id}-{time.monotonic_ns()}")
    bundle = Path(run.bundle_path).parent / f"bundle-{model}-{entry.version}"
    shutil.copytree(run.bundle_path, bundle)
    signature = json.loads((bundle / "signature.json").read_text())
    signature["serving"] |= serving
    (bundle / "signature.json").write_text(json.dumps({**signature, "model": model}))
    graph = bundle / "model.onnx"
    graph.write_bytes(change(graph.read_bytes()))
    folder = registry.folder(model, entry.version)
    manifest = seal(
        read_bundle(bundle, model=model), folder, settings, version=entry.version, card="# Test"
    )
    registry.finish_entry(
        entry,
        VersionFacts(
            digest=manifest.digest,
            use_case=signature["use_case"],
            estimator="logistic_regression",
            training_set_id=run.training_set_id,
            metrics={},
            agreement_rows=0,
            agreement_max_difference=0.0,
        ),
    )
    return registry.resolve(model, entry.version)


def no_number(graph: bytes, *, feature: int = 0) -> bytes:
    """NaN for every row that has a feature, the first: the row without features still has a score."""
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["features", "which"], ["column"], axis=1),
        helper.make_node("IsNaN", ["column"], ["is_absent"]),
        helper.make_node("Where", ["is_absent", "true_score", "no_number"], ["score"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(feature, dtype=np.int64), "which"),
        numpy_helper.from_array(np.array(np.nan, dtype=np.float32), "no_number"),
    ]
    return _behind(graph, nodes, constants)


def fails_at_once(graph: bytes) -> bytes:
    """Fails on any row: it asks for a column that is not there."""
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["features", "beyond"], ["column"], axis=1),
        helper.make_node("Cast", ["column"], ["narrow"], to=1),
        helper.make_node("Add", ["true_score", "narrow"], ["score"]),
    ]
    return _behind(graph, nodes, [numpy_helper.from_array(np.array(999, dtype=np.int64), "beyond")])


def slow(graph: bytes, *, num_steps: int = 150) -> bytes:
    """The same scores, after a good half second of arithmetic that changes nothing."""
    from onnx import TensorProto, helper, numpy_helper

    size = 500
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "mixing"], ["after"]),
            helper.make_node("Identity", ["go_on"], ["goes_on"]),
        ],
        "step",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", TensorProto.FLOAT, [size, size]),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", TensorProto.FLOAT, [size, size]),
        ],
    )
    nodes = [
        helper.make_node("ReduceSum", ["true_score"], ["all_scores"], keepdims=0),
        helper.make_node("Expand", ["all_scores", "shape"], ["start"]),
        helper.make_node("Loop", ["num_steps", "yes", "start"], ["end"], body=body),
        helper.make_node("ReduceMax", ["end"], ["largest"], keepdims=0),
        helper.make_node("Mul", ["largest", "zero"], ["nothing"]),
        helper.make_node("Add", ["true_score", "nothing"], ["score"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([size, size], dtype=np.int64), "shape"),
        numpy_helper.from_array(np.eye(size, dtype=np.float32), "mixing"),
        numpy_helper.from_array(np.array(num_steps, dtype=np.int64), "num_steps"),
        numpy_helper.from_array(np.array(True), "yes"),
        numpy_helper.from_array(np.array(0, dtype=np.float32), "zero"),
    ]
    return _behind(graph, nodes, constants)


def shifted(graph: bytes) -> bytes:
    """Other scores, all of them finite: half of what they were."""
    from onnx import helper, numpy_helper

    node = helper.make_node("Mul", ["true_score", "half"], ["score"])
    return _behind(graph, [node], [numpy_helper.from_array(np.float32(0.5), "half")])


def by_amount(graph: bytes, *, feature: int, sense: float = 1.0) -> bytes:
    """Other scores: near 1 for an amount above 50, near 0 below; or, with -1, the other way."""
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["features", "which"], ["column"], axis=1),
        helper.make_node("Cast", ["column"], ["amount"], to=1),
        helper.make_node("Sub", ["amount", "middle"], ["distance"]),
        helper.make_node("Mul", ["distance", "steepness"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["by_amount"]),
        helper.make_node("IsNaN", ["amount"], ["is_absent"]),
        helper.make_node("Where", ["is_absent", "true_score", "by_amount"], ["score"]),
    ]
    constants = [
        numpy_helper.from_array(np.array(feature, dtype=np.int64), "which"),
        numpy_helper.from_array(np.float32(50), "middle"),
        numpy_helper.from_array(np.float32(sense / 10), "steepness"),
    ]
    return _behind(graph, nodes, constants)


def _behind(graph: bytes, nodes: list, constants: list) -> bytes:
    """Put nodes behind a graph: its score becomes `true_score`, and theirs the output."""
    import onnx

    model = onnx.load_from_string(graph)
    for node in model.graph.node:
        for place, name in enumerate(node.output):
            if name == "score":
                node.output[place] = "true_score"
        for place, name in enumerate(node.input):
            if name == "score":
                node.input[place] = "true_score"
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    onnx.checker.check_model(model)
    return model.SerializeToString()


@dataclass
class Callers:
    """Threads that ask a model without a pause, each request with an id of its own."""

    port: int
    model: str
    answers: list[tuple[float, int, int | None, int]] = field(default_factory=list)
    """When it came (monotonic seconds), status, version, customer."""
    lost: list[str] = field(default_factory=list)

    def ask_on(self, number: int, ended: threading.Event, pause_s: float) -> None:
        count = 0
        while not ended.is_set():
            count += 1
            customer = (number * 7 + count) % NUM_CUSTOMERS
            row = {
                "CUSTOMER_ID": customer,
                "TERMINAL_ID": count % 60,
                "TX_DATETIME": "2024-04-20T10:00:00Z",
                "TX_AMOUNT": 10.0 + count % 90,
            }
            headers = {**JSON, "X-Request-Id": f"{number}-{count}"}
            body = self.body(row)
            try:
                path = f"/v1/models/{self.model}/predict"
                reply = send(self.port, path, body, headers=headers)
            except OSError as error:
                self.lost.append(f"{type(error).__name__}: {error}")
                continue
            version = reply.json.get("version") if reply.status == 200 else None
            self.answers.append((time.monotonic(), reply.status, version, customer))
            if reply.status != 200:
                self.lost.append(f"{reply.status}: {reply.body[:200]!r}")
            time.sleep(pause_s)

    @staticmethod
    def body(row: dict[str, object]) -> str:
        return json.dumps({"rows": [row]})

    def versions(self, since_s: float = 0.0) -> set[int | None]:
        return {version for at, _, version, _ in self.answers if at >= since_s}


@contextmanager
def callers(port: int, model: str, *, threads: int = 3, pause_s: float = 0.01) -> Iterator[Callers]:
    """Ask a model from several threads for as long as the block lasts."""
    asked = Callers(port, model)
    ended = threading.Event()
    running = [
        threading.Thread(target=asked.ask_on, args=(number, ended, pause_s), daemon=True)
        for number in range(threads)
    ]
    for thread in running:
        thread.start()
    try:
        yield asked
    finally:
        ended.set()
        for thread in running:
            thread.join(70)
