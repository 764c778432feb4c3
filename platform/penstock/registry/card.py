"""The model card: what a person must know before relying on a version, as Markdown."""

from collections.abc import Mapping
from typing import Any

from penstock.registry.agreement import Agreement
from penstock.registry.package import Signature

# What the sections below show of training.json in words of their own; the rest is listed as is.
_TOLD = frozenset(
    {"metrics", "table_versions", "run_id", "training_set_id", "model", "estimator", "packages"}
)


def render_card(
    signature: Signature, training: Mapping[str, Any], agreement: Agreement, *, version: int
) -> str:
    """Write the card of a version from what its run recorded; nothing in it is made up."""
    metrics = training.get("metrics", {})
    tables = training.get("table_versions", {})
    protocol = {k: v for k, v in training.items() if k not in _TOLD}
    lines = [
        f"# {signature.model} version {version}",
        "",
        f"A {signature.estimator} that scores `{signature.label}` from the "
        f"{len(signature.feature_names)} features of the service `{signature.feature_service}` "
        f"({signature.use_case}).",
        "",
        "## Data",
        "",
        f"- training set: `{training.get('training_set_id', 'not recorded')}`",
        *(f"- table `{name}` at version {number}" for name, number in sorted(tables.items())),
        "",
        "## Protocol",
        "",
        *(_listed(protocol) or ["- not recorded"]),
        "",
        "## Metrics, on data later than the training data",
        "",
        "| metric | value |",
        "|---|---|",
        *(f"| {name} | {float(value):.4f} |" for name, value in sorted(metrics.items())),
        "",
        "## Lineage",
        "",
        f"- run: `{training.get('run_id', 'not recorded')}`",
        f"- request fields: {', '.join(f'{f.name} ({f.dtype})' for f in signature.request_fields)}",
        f"- features, in order: {', '.join(signature.feature_names)}",
        "",
        "## Limits",
        "",
        f"- The graph and the native weights agree within {agreement.max_abs_difference:.2g} on "
        f"{agreement.num_rows:,} real rows, and on {agreement.num_rows_with_blanks:,} of them with "
        "random blanks; beyond the range of the training data nothing was checked.",
        "- The metrics hold for the period and the population above; they say nothing of later "
        "periods, of other populations, or of what happens when people react to the scores.",
        _threshold(signature),
        "",
    ]
    return "\n".join(lines)


def _threshold(signature: Signature) -> str:
    if signature.threshold is None:
        return "- It gives scores only: no threshold was declared."
    return (
        f"- A score of at least {signature.threshold:g} counts as positive; the threshold was "
        "declared, not derived from the costs of the two kinds of error."
    )


def _listed(values: Mapping[str, Any], indent: str = "") -> list[str]:
    lines: list[str] = []
    for key, value in sorted(values.items()):
        if value is None:
            continue
        if isinstance(value, Mapping):
            lines += [f"{indent}- {key}:", *_listed(value, indent + "  ")]
        else:
            lines.append(f"{indent}- {key}: {value}")
    return lines
