"""Whether a version's graph is served in int8: measured on real rows, decided by a pure policy."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import TypeAdapter

from penstock.handover import MODEL_FILE, QUANTIZATION_FILE, Int8
from penstock.records import Record
from penstock.registry.int8_graph import to_int8
from penstock.registry.package import Bundle
from penstock.scorer import Scorer, load_scorer
from penstock.training import kept_rows
from penstock.training.declarations import Metric
from penstock.training.validation import Examples

_WARM_UP = 5
_MIN_REPEATS = 30
_MAX_REPEATS = 2_000
_MEASURE_S = 0.5


class BatchLatency(Record):
    """Medians of runs that took turns, on one thread."""

    num_rows: int
    float_us: float
    int8_us: float

    @property
    def speedup(self) -> float:
        """How many times as fast int8 is."""
        return self.float_us / self.int8_us


class Int8Evidence(Record):
    """What was measured of a graph in int8, beside the one in float32."""

    num_layers: int
    """That are in int8."""
    num_rows: int
    """Test rows of the run."""
    metric: str
    higher_is_better: bool
    float_metric: float
    int8_metric: float
    max_score_difference: float
    latencies: tuple[BatchLatency, ...]

    @property
    def metric_loss(self) -> float:
        """By how much int8 is worse; below zero: better."""
        loss = self.float_metric - self.int8_metric
        return loss if self.higher_is_better else -loss


class Quantization(Record):
    """What was decided, and from what; `quantization.json` of a package."""

    is_served: bool
    """The package's graph is the one in int8."""
    reason: str
    policy: Int8
    evidence: Int8Evidence | None = None
    """None: there was nothing to measure, or nothing to measure it on."""


def judge(policy: Int8, evidence: Int8Evidence) -> Quantization:
    """Serve int8 where the metric loses no more, and every batch gains no less, than declared."""
    name, loss = evidence.metric, evidence.metric_loss
    values = f"{name} {evidence.int8_metric:.6g} in place of {evidence.float_metric:.6g}"
    slow = [each for each in evidence.latencies if not each.speedup >= policy.min_speedup]
    # NaN compares false with everything: ask for what must hold, not for what must not.
    if not loss <= policy.max_metric_loss:
        is_served, reason = False, f"{values} loses more than {policy.max_metric_loss:g}"
    elif slow:
        is_served, reason = False, f"{_speedups(slow)} is below {policy.min_speedup:g} times"
    else:
        is_served, reason = True, f"{values}; {_speedups(evidence.latencies)}"
    told = f"{'served in int8' if is_served else 'not served in int8'}: {reason}"
    return Quantization(is_served=is_served, reason=told, policy=policy, evidence=evidence)


def _speedups(latencies: Sequence[BatchLatency]) -> str:
    return ", ".join(
        f"{each.speedup:.2f} times as fast for {each.num_rows:,} row{'s' * (each.num_rows > 1)}"
        for each in latencies
    )


def quantize(bundle: Bundle, run_folder: Path, rows: npt.NDArray[np.float64]) -> Bundle:
    """Put the graph in int8 in the place of a bundle's, where that is declared and passes its gate.

    Args:
        bundle: what training left.
        run_folder: holds the test rows that the run kept.
        rows: float64 [n, F], n > 0, of the training set.

    Returns:
        The bundle with its `quantization.json`; as it was, where int8 is not declared.
    """
    policy = bundle.signature.serving.quantization
    if policy is None:
        return bundle
    graph, decision = _decide(policy, bundle, kept_rows.read(run_folder), rows)
    told = orjson.dumps(decision.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
    return replace(bundle, files={**bundle.files, MODEL_FILE: graph, QUANTIZATION_FILE: told})


def _decide(
    policy: Int8, bundle: Bundle, test: Examples | None, rows: npt.NDArray[np.float64]
) -> tuple[bytes, Quantization]:
    def no(reason: str) -> tuple[bytes, Quantization]:
        told = f"not served in int8: {reason}"
        return bundle.onnx, Quantization(is_served=False, reason=told, policy=policy)

    if test is None:
        return no("the run kept no test rows to measure it on; train again")
    try:
        made = to_int8(bundle.onnx, rows)
    except Exception as error:  # noqa: BLE001 - a user's net may hold what onnxruntime cannot take
        return no(f"onnxruntime does not take the graph: {error}")
    if made is None:
        return no(f"{bundle.signature.estimator} has no inner dense layers; there is nothing to do")
    graph, num_layers = made
    evidence = _measure(policy, bundle, (graph, num_layers), test)
    decision = judge(policy, evidence)
    return (graph if decision.is_served else bundle.onnx), decision


def _measure(policy: Int8, bundle: Bundle, made: tuple[bytes, int], test: Examples) -> Int8Evidence:
    from penstock.training.metrics import evaluate

    graph, num_layers = made
    scorers = load_scorer(bundle.onnx), load_scorer(graph)
    scores = [scorer(test.features) for scorer in scorers]
    metric = _primary_metric(bundle.training["declaration"])
    # Scores that are no numbers have no metric, and pass no gate.
    before, after = (
        evaluate([metric], test, each)[metric.name] if np.isfinite(each).all() else float("nan")
        for each in scores
    )
    return Int8Evidence(
        num_layers=num_layers,
        num_rows=test.num_rows,
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        float_metric=before,
        int8_metric=after,
        max_score_difference=float(np.abs(scores[1] - scores[0]).max()),
        latencies=tuple(_latency(scorers, test.features, size) for size in policy.batch_sizes),
    )


def _primary_metric(declaration: Mapping[str, Any]) -> Metric:
    metrics: TypeAdapter[tuple[Metric, ...]] = TypeAdapter(tuple[Metric, ...])
    declared = metrics.validate_python(declaration["metrics"])
    return next(each for each in declared if each.name == declaration["primary_metric"])


def _latency(
    scorers: tuple[Scorer, Scorer], rows: npt.NDArray[np.float64], num_rows: int
) -> BatchLatency:
    """Let both run in turns: what else the machine does falls on both alike."""
    batch = np.resize(rows, (num_rows, rows.shape[1]))
    taken_s: tuple[list[float], list[float]] = ([], [])
    begun_s = time.perf_counter()
    for number in range(_WARM_UP + _MAX_REPEATS):
        if number == _WARM_UP:
            taken_s = ([], [])
            begun_s = time.perf_counter()
        is_enough = len(taken_s[0]) >= _MIN_REPEATS
        if is_enough and time.perf_counter() - begun_s > _MEASURE_S:
            break
        # Who comes second finds a warmer machine: each does so half of the time.
        for place in (0, 1) if number % 2 else (1, 0):
            started_s = time.perf_counter()
            scorers[place](batch)
            taken_s[place].append(time.perf_counter() - started_s)
    before, after = (1e6 * float(np.median(each)) for each in taken_s)
    return BatchLatency(num_rows=num_rows, float_us=before, int8_us=after)
