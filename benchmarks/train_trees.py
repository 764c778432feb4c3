"""Boosted trees: Ray Train's one worker beside the bare library, on the same rows and threads.

Both read the same arrays, make the library's own matrix of bins, grow the same trees, and end with
the model's bytes; the trees must be equal. Ours also writes checkpoints and keeps each round's
loss, as a fit does. They take turns. The fixed cost is what a fit of a thousand rows and one round
takes: the worker process, whatever it is to train; a fit of 500 rounds takes ten times that. Graphs
are left out on both sides.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from _own_ray import own_ray

LIBRARIES = ("xgboost", "lightgbm")


def make_rows(num_rows: int, num_features: int):
    import numpy as np

    rng = np.random.default_rng(0)
    scaled = rng.standard_normal((num_rows, num_features), dtype=np.float32)
    logits = 2 * scaled[:, 0] + scaled[:, 1] * scaled[:, 2] - 2
    return scaled, (rng.random(num_rows) < 1 / (1 + np.exp(-logits))).astype(np.int8)


def declare(library: str, *, num_rounds: int, num_threads: int):
    from penstock.training.declarations import LightGBM, XGBoost

    kind = {"xgboost": XGBoost, "lightgbm": LightGBM}[library]
    return kind(num_rounds=num_rounds, num_cpus_per_worker=num_threads, use_gpu=False)


def by_library(library: str, config, scaled, labels) -> bytes:
    """As its own documentation has it."""
    if library == "xgboost":
        import xgboost

        from penstock.training.estimators import xgboost_trees

        given = xgboost_trees.parameters(config, use_gpu=False)
        rows = xgboost.QuantileDMatrix(
            scaled, label=labels, max_bin=config.max_bins, nthread=config.num_cpus_per_worker
        )
        return bytes(xgboost.train(given, rows, config.num_rounds).save_raw("ubj"))
    import lightgbm

    from penstock.training.estimators import lightgbm_trees

    given = lightgbm_trees.parameters(config)
    rows = lightgbm.Dataset(scaled, label=labels, params=given)
    return lightgbm.train(given, rows, config.num_rounds).model_to_string().encode()


def by_ray_train(library: str, config, scaled, labels) -> bytes:
    from penstock.training.estimators import lightgbm_trees, xgboost_trees
    from penstock.training.estimators.base import FitJob

    trees = {"xgboost": xgboost_trees, "lightgbm": lightgbm_trees}[library]
    with tempfile.TemporaryDirectory() as folder:
        job = FitJob(name="fit", checkpoints=Path(folder))
        state = trees.FAMILY.boost_on_workers(config, scaled, labels, job)
    assert len(state.history) == config.num_rounds
    return state.model


def trees_of(library: str, model: bytes):
    if library == "xgboost":
        import xgboost

        return xgboost.Booster(model_file=bytearray(model)).get_dump()
    text = model.decode()
    return text[text.index("Tree=0") : text.index("end of trees")]


def timed(fit, *arguments) -> tuple[float, bytes]:
    start = time.perf_counter()
    model = fit(*arguments)
    return time.perf_counter() - start, model


def compare(library: str, given: argparse.Namespace, scaled, labels) -> dict[str, float]:
    config = declare(library, num_rounds=given.rounds, num_threads=given.threads)
    least = declare(library, num_rounds=1, num_threads=given.threads)
    took_s = {"ray train": [], "library": [], "fixed": []}
    for _ in range(given.repeat):
        took_s["fixed"].append(timed(by_ray_train, library, least, scaled[:1000], labels[:1000])[0])
        ours_s, ours = timed(by_ray_train, library, config, scaled, labels)
        theirs_s, theirs = timed(by_library, library, config, scaled, labels)
        assert trees_of(library, ours) == trees_of(library, theirs), "trees differ"
        took_s["ray train"].append(ours_s)
        took_s["library"].append(theirs_s)
    ours_s, theirs_s, fixed_s = (statistics.median(each) for each in took_s.values())
    print(
        f"{library}: {ours_s:.1f} s by Ray Train, of which {fixed_s:.1f} s are fixed; "
        f"{theirs_s:.1f} s bare: {ours_s / theirs_s:.2f}x"
    )
    return {
        f"{library}_s": round(ours_s, 2),
        f"{library}_fixed_s": round(fixed_s, 2),
        f"{library}_bare_s": round(theirs_s, 2),
        f"{library}_ratio": round(ours_s / theirs_s, 3),
        f"{library}_ratio_without_fixed": round((ours_s - fixed_s) / theirs_s, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--features", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1, help="turns")
    parser.add_argument("--library", choices=LIBRARIES, action="append", help="default: both")
    given = parser.parse_args()

    scaled, labels = make_rows(given.rows, given.features)
    found: dict[str, float] = {"rows": given.rows, "rounds": given.rounds}
    with own_ray(num_cpus=given.threads):
        for library in given.library or LIBRARIES:
            found |= compare(library, given, scaled, labels)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
