"""The model card: what a person must know before relying on a version, as Markdown.

All of it comes from what the run wrote down; where that is silent, the card says so.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.registry.agreement import Agreement
from penstock.registry.package import Signature

_NOT_DECLARED = "not declared: say it in model.py, as `intended_use=IntendedUse(…)`"
Lines = list[str]


def render_card(
    signature: Signature,
    training: Mapping[str, Any],
    agreement: Agreement,
    *,
    version: int,
    quantization: Mapping[str, Any] | None = None,
) -> str:
    """Write the card of a version from what its run recorded; nothing in it is made up."""
    declared = training.get("declaration", {})
    primary = declared.get("primary_metric")
    sections: list[tuple[str, Lines]] = [
        ("Intended use", _intended_use(declared.get("intended_use"))),
        ("Data", _data(signature, training)),
        ("Protocol", _protocol(training, declared)),
        ("Metrics, on data later than the training data", _metrics(training, declared)),
        ("Metrics by slice", _slices(training.get("slices", []), primary)),
        ("Calibration, on the test rows", _calibration(training.get("calibration"))),
        ("Served in int8 or not", _quantization(quantization)),
        ("Limits", _limits(signature, agreement, declared)),
        ("Lineage, from an answer back to its sources", _lineage(signature, training, version)),
        ("What it ran on", _ground(training)),
    ]
    lines = [
        f"# {signature.model} version {version}",
        "",
        f"A {signature.estimator} that scores {_target(signature)} from the "
        f"{len(signature.feature_names)} features of the service `{signature.feature_service}` "
        f"({signature.use_case}).",
        "",
    ]
    for title, content in sections:
        if content:
            lines += [f"## {title}", "", *content, ""]
    return "\n".join(lines)


def _intended_use(declared: Mapping[str, Any] | None) -> Lines:
    if declared is None:
        return [f"- {_NOT_DECLARED}"]
    return [
        f"- for: {declared['purpose']}",
        f"- used by: {declared['users']}",
        *(f"- not for: {each}" for each in declared.get("not_for", ())),
    ]


def _data(signature: Signature, training: Mapping[str, Any]) -> Lines:
    tables = training.get("table_versions", {})
    lines = [f"- training set: `{training.get('training_set_id', 'not recorded')}`"]
    for side in ("training", "test"):
        rows, positives = (training.get(f"num_{side}_{what}") for what in ("rows", "positives"))
        if rows is not None:
            more = "" if positives is None else f", {positives:,} positive"
            lines.append(f"- {side} rows: {rows:,}{more}")
    lines += [f"- table `{name}` at version {number}" for name, number in sorted(tables.items())]
    fields = ", ".join(f"{f.name} ({f.dtype})" for f in signature.request_fields)
    return [
        *lines,
        f"- request fields: {fields}",
        f"- features, in order: {', '.join(signature.feature_names)}",
    ]


def _protocol(training: Mapping[str, Any], declared: Mapping[str, Any]) -> Lines:
    told: dict[str, Any] = {
        "split": training.get("split"),
        "preprocessing": training.get("preprocessing"),
        "estimator": training.get("config"),
        "parameters found by the search": training.get("tuning_run"),
        "leak alarm": declared.get("leak_alarm"),
        "gate": declared.get("gate"),
        "seed": training.get("seed"),
        "fitted in, s": training.get("fit_s"),
        "run started": training.get("started"),
    }
    return _listed({k: v for k, v in told.items() if v is not None}) or ["- not recorded"]


def _metrics(training: Mapping[str, Any], declared: Mapping[str, Any]) -> Lines:
    metrics, found = training.get("metrics", {}), training.get("intervals", {})
    level = (declared.get("bootstrap") or {}).get("level", 0.95)
    if not found:
        rows = [[name, f"{float(value):.4f}"] for name, value in sorted(metrics.items())]
        return _table(["metric", "value"], rows)
    return _table(
        ["metric", "value", f"{100 * level:g} % interval"],
        [
            [name, f"{float(value):.4f}", _interval(found.get(name))]
            for name, value in sorted(metrics.items())
        ],
    )


def _slices(slices: Sequence[Mapping[str, Any]], primary: str | None) -> Lines:
    if not slices:
        return ["No slices were declared: how it does on parts of the population is not known."]
    has_positives = any(each["num_positives"] is not None for each in slices)
    names = list(dict.fromkeys(name for each in slices for name in each["metrics"]))
    names.sort(key=lambda name: name != primary)
    head = ["slice", "part", "rows", *(["positive"] if has_positives else [])]
    rows = [
        [
            each["slice"],
            each["part"] + (" (small)" if each["is_small"] else ""),
            f"{each['num_rows']:,}",
            *([f"{each['num_positives']:,}"] if has_positives else []),
            *(
                (f"{each['metrics'][n]:.4f}" if n in each["metrics"] else "-")
                + (f" ({_interval(each['interval'])})" if n == primary and each["interval"] else "")
                for n in names
            ),
        ]
        for each in slices
    ]
    small = any(each["is_small"] for each in slices)
    return [
        *_table([*head, *names], rows),
        *(["", "A part called small has so few rows that its metrics say little."] * small),
    ]


def _calibration(bins: Mapping[str, Sequence[float]] | None) -> Lines:
    if not bins:
        return []
    rows = zip(bins["mean_scores"], bins["mean_labels"], bins["num_rows"], strict=True)
    return _table(
        ["mean score of the bin", "mean label", "rows"],
        [[f"{score:.4f}", f"{label:.4f}", f"{int(count):,}"] for score, label, count in rows],
    )


def _quantization(decided: Mapping[str, Any] | None) -> Lines:
    if decided is None:
        return []
    evidence = decided["evidence"]
    if evidence is None:
        return [f"- {decided['reason']}"]
    rows = [
        [f"{each['num_rows']:,}", f"{each['float_us']:.0f}", f"{each['int8_us']:.0f}"]
        for each in evidence["latencies"]
    ]
    is_served = "The graph in int8 is a step away from what the metrics above and the agreement "
    return [
        f"- {decided['reason']}",
        f"- on {evidence['num_rows']:,} test rows, {evidence['num_layers']} layers in int8; scores "
        f"differ by {evidence['max_score_difference']:.2g} at most",
        *([f"- {is_served}below were measured on: the graph in float32."] * decided["is_served"]),
        "",
        *_table(["rows of a batch", "float32, µs", "int8, µs"], rows),
    ]


def _limits(signature: Signature, agreement: Agreement, declared: Mapping[str, Any]) -> Lines:
    return [
        *(f"- {each}" for each in declared.get("limits", ())),
        f"- The graph and the native weights agree within {agreement.max_abs_difference:.2g} on "
        f"{agreement.num_rows:,} real rows, and on {agreement.num_rows_with_blanks:,} of them with "
        "random blanks; beyond the range of the training data nothing was checked.",
        "- The metrics hold for the period and the population above; they say nothing of later "
        "periods, of other populations, or of what happens when people react to the scores.",
        _threshold(signature),
    ]


def _lineage(signature: Signature, training: Mapping[str, Any], version: int) -> Lines:
    lines = [
        f"1. an answer carries its `prediction_id`, and `{signature.use_case}.predictions` keeps "
        "it with the features that it was made from",
        f"2. the deployment of `{signature.model}` says in each answer: version {version}",
        f"3. version {version} is run `{training.get('run_id', 'not recorded')}`",
        f"4. the run is of training set `{training.get('training_set_id', 'not recorded')}`",
        "5. the training set is of these tables:",
    ]
    for each in training.get("lineage", []):
        of = f", made from {each['made_from']}" if each["made_from"] else ""
        lines.append(
            f"    - `{each['table']}` version {each['version']}, {each['num_rows']:,} rows{of}"
        )
        lines += [f"        - source: {source}" for source in each["sources"]]
        more = each["num_sources"] - len(each["sources"])
        lines += [f"        - and {more:,} older sources"] * (more > 0)
    return lines


def _ground(training: Mapping[str, Any]) -> Lines:
    provenance = training.get("provenance") or {}
    told = {
        "git commit": training.get("git_commit"),
        "environment (digest)": training.get("environment_digest"),
        **{key.replace("_", " "): value for key, value in provenance.items() if value},
    }
    return _listed({k: v for k, v in told.items() if v is not None})


def _threshold(signature: Signature) -> str:
    if signature.threshold is None:
        return "- It gives scores only: no threshold was declared."
    return (
        f"- A score of at least {signature.threshold:g} counts as positive; the threshold was "
        "declared, not derived from the costs of the two kinds of error."
    )


def _interval(ends: Sequence[float] | None) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f}" if ends else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Lines:
    # A slice's value may hold what ends a cell.
    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"

    return [row(head), f"|{'---|' * len(head)}", *map(row, rows)]


def _listed(values: Mapping[str, Any], indent: str = "") -> Lines:
    lines: Lines = []
    for key, value in values.items():
        if value is None or value in ({}, [], ()):
            continue
        if isinstance(value, Mapping):
            lines += [f"{indent}- {key}:", *_listed(value, indent + "    ")]
        else:
            lines.append(f"{indent}- {key}: {value}")
    return lines


def _target(signature: Signature) -> str:
    return "rows, with no label," if signature.label is None else f"`{signature.label}`"
