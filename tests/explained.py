"""Packages to explain without a registry, Shapley values by their definition, a server's answers."""

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from http_requests import JSON, send
from penstock.handover import BACKGROUND_FILE, MODEL_FILE, Background
from penstock.registry.package import PackageManifest, Signature, VerifiedPackage
from penstock.training.background import draw_background
from waiting import wait_for

Score = Callable[[np.ndarray], np.ndarray]


def package(
    graph: bytes, features: np.ndarray, names: tuple[str, ...], *, background: bool = True
) -> VerifiedPackage:
    """As one that was verified: the graph, and a background drawn from these training rows."""
    files = {MODEL_FILE: graph}
    if background:
        drawn = draw_background(features, feature_names=names)
        files[BACKGROUND_FILE] = drawn.model_dump_json().encode()
    signature = Signature(
        model="spills",
        estimator="some",
        use_case="dam",
        feature_service="dam_v1",
        feature_names=names,
        request_fields=(),
        label="SPILLED",
    )
    manifest = PackageManifest(
        model="spills", version=3, created=datetime.now(UTC), key_id="k", files={}
    )
    return VerifiedPackage(files=files, signature=signature, manifest=manifest)


def background_rows(found: VerifiedPackage) -> np.ndarray:
    drawn = Background.model_validate_json(found.files[BACKGROUND_FILE])
    return np.array(drawn.rows, dtype=float)


def shapley_values(score: Score, row: np.ndarray, background: np.ndarray) -> np.ndarray:
    """By the definition: what a feature adds to each coalition of others, weighed by its size."""

    def worth(coalition: tuple[int, ...]) -> float:
        mixed = background.copy()
        mixed[:, coalition] = row[list(coalition)]
        return float(score(mixed).mean())

    num = len(row)
    values = np.zeros(num)
    for feature in range(num):
        others = [other for other in range(num) if other != feature]
        for size in range(num):
            for coalition in combinations(others, size):
                gain = worth((*coalition, feature)) - worth(coalition)
                values[feature] += gain / (num * comb(num - 1, size))
    return values


def explanations_of(port: int, path: str, body: str) -> dict[str, Any]:
    """Ask until there is an answer: the nicest of all processes waits long on a busy machine."""
    found: list[dict[str, Any]] = []

    def has_answer() -> bool:
        reply = send(port, path, body, headers=JSON)
        assert reply.status in (200, 504), reply.body
        found.extend([reply.json] if reply.status == 200 else [])
        return bool(found)

    wait_for(has_answer, timeout_s=300)
    return found[0]
