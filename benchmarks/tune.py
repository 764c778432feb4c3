"""A search's trials against plain Optuna in one process, with the same fits on the same cores.

1. Without early stopping: wall seconds per trial, ours beside plain Optuna's. Both fit XGBoost on
   the same folds and measure alike; plain Optuna gives each fit all cores, ours one core to each.
2. With it (asha): wall seconds until each has found the same score.

scripts/bench tune [--trials 40] [--rows 20000] [--repeat 3]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from _own_ray import own_ray

METRIC = "average_precision"
NUM_FOLDS = 4


PLAIN, WHOLE, HALVED = "plain Optuna", "ours", "ours, asha"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--rows", type=int, default=20_000, help="of each side of a fold")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=3, help="turns")
    given = parser.parse_args()
    cores = os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(cores)
    folds = [make_fold(seed, given.rows) for seed in range(NUM_FOLDS)]
    turns = [take_turn(folds, given, cores) for _ in range(given.repeat)]
    target = min(best_of(found) for turn in turns for found in turn.values())
    print(
        f"{given.trials} trials of XGBoost, {NUM_FOLDS} folds x {given.rows:,} rows, {cores} "
        f"cores, median of {given.repeat} turns"
    )
    last = f"s to {target:.4f}"
    print(f"{'':14} {'wall, s':>8} {'s/trial':>8} {'fits':>5} {'best':>7} {last:>12}")
    wall_s, to_target_s = {}, {}
    for name in (PLAIN, WHOLE, HALVED):
        found = [turn[name] for turn in turns]
        wall_s[name] = statistics.median(each["wall_s"] for each in found)
        to_target_s[name] = statistics.median(time_to(each, target) for each in found)
        print(
            f"{name:14} {wall_s[name]:8.1f} {wall_s[name] / given.trials:8.2f} "
            f"{found[-1]['fits']:5d} {max(map(best_of, found)):7.4f} {to_target_s[name]:12.1f}"
        )
    ratio = statistics.median(turn[WHOLE]["wall_s"] / turn[PLAIN]["wall_s"] for turn in turns)
    print(
        json.dumps(
            {
                "benchmark": "tune",
                "trials": given.trials,
                "plain_s_per_trial": round(wall_s[PLAIN] / given.trials, 3),
                "ours_s_per_trial": round(wall_s[WHOLE] / given.trials, 3),
                "ratio": round(ratio, 3),
                "asha_s_to_same_score": round(to_target_s[HALVED], 1),
                "plain_s_to_same_score": round(to_target_s[PLAIN], 1),
            }
        )
    )


def take_turn(folds, given, cores):
    """All three, one after the other: whatever else the machine does meets all of them."""
    plain = plain_optuna(folds, given.trials, cores, given.seed)
    with tempfile.TemporaryDirectory() as folder, own_ray(num_cpus=cores):
        warm_up(folds, cores)
        whole = ours(folds, given, cores, Path(folder) / "none.jsonl", rule="none")
        halved = ours(folds, given, cores, Path(folder) / "asha.jsonl", rule="asha")
    return {PLAIN: plain, WHOLE: whole, HALVED: halved}


def make_fold(seed, num_rows):
    from penstock.training.estimators.base import FitJob
    from penstock.training.preprocessing import Preprocessing
    from penstock.training.search.measuring import PreparedFold
    from penstock.training.validation import Examples

    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(2 * num_rows, 15)).astype(np.float32)
    weights = np.random.default_rng(99).normal(size=15)
    logits = rows @ weights + rows[:, 0] * rows[:, 1] - 5
    labels = (rng.random(len(rows)) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    return PreparedFold(
        scaling=Preprocessing(means=np.zeros(15), scales=np.ones(15)),
        train=rows[:num_rows],
        train_labels=labels[:num_rows],
        job=FitJob(name="trial", checkpoints=Path()),
        test=rows[num_rows:],
        test_rows=Examples(
            features=np.empty((num_rows, 0)), labels=labels[num_rows:], frame=pl.DataFrame()
        ),
    )


def space():
    from penstock.training.declarations import Floats, Ints, Search

    return Search(
        num_rounds=Ints(20, 120),
        max_depth=Ints(2, 7),
        learning_rate=Floats(0.02, 0.5, log=True),
        subsample=Floats(0.5, 1.0),
    )


def fitted(fold, params, num_threads):
    from penstock.training.declarations import AveragePrecision, XGBoost
    from penstock.training.search.measuring import measure

    config = XGBoost(num_cpus_per_worker=num_threads, **params)
    return measure(fold, config, [AveragePrecision()]).metrics[METRIC]


def plain_optuna(folds, num_trials, cores, seed):
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started_s = time.monotonic()
    points = []

    def objective(trial):
        params = {
            "num_rounds": trial.suggest_int("num_rounds", 20, 120),
            "max_depth": trial.suggest_int("max_depth", 2, 7),
            "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.5, log=True),
            "subsample": trial.suggest_float("subsample", 0.5, 1.0),
        }
        value = float(np.mean([fitted(fold, params, cores) for fold in folds]))
        points.append((time.monotonic() - started_s, value))
        return value

    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=8)
    optuna.create_study(direction="maximize", sampler=sampler).optimize(
        objective, n_trials=num_trials
    )
    return {
        "wall_s": time.monotonic() - started_s,
        "points": points,
        "fits": num_trials * len(folds),
    }


def ours(folds, given, cores, file, *, rule):
    from penstock.training.declarations import AveragePrecision, XGBoost
    from penstock.training.search.budget import Budget
    from penstock.training.search.controller import Controller, Plan, Watch
    from penstock.training.search.ledger import Ledger
    from penstock.training.search.measuring import measure
    from penstock.training.search.proposals import Space
    from penstock.training.search.tasks import OnRay
    from penstock.training.search_declarations import with_values

    started_s = time.monotonic()
    tasks = OnRay(cores)
    shared = [tasks.share(fold) for fold in folds]
    plan = Plan(
        # Nothing is declared: the first trial is the lowest of each, and small.
        space=Space(
            searches={"xgboost": space()},
            declared={"xgboost": dict.fromkeys(space().dimensions, -1)},
            seed=given.seed,
            metric=METRIC,
            higher_is_better=True,
        ),
        folds=tuple(range(len(folds))),
        budget=Budget(num_trials=given.trials),
        rule=rule,
        money_per_cpu_s=0.0,
        num_cpus={"xgboost": 1},
    )
    points = []

    def start(trial, fold):
        config = with_values(XGBoost(), trial.params, of="a trial")
        key = trial.number, fold
        tasks.start(key, measure, shared[fold], config, [AveragePrecision()], num_cpus=1)

    def ended(trial):
        if trial.state == "complete":
            points.append((time.monotonic() - started_s, trial.value(METRIC)))

    ledger = Ledger(file, {})
    Controller(plan, ledger, tasks, start, Watch(ended=ended)).run()
    return {
        "wall_s": time.monotonic() - started_s,
        "points": points,
        "fits": sum(len(trial.folds) for trial in ledger.trials),
    }


def warm_up(folds, cores):
    """Start the workers; a job's own ones start and import while its rows are read."""
    import ray

    task = ray.remote(fitted)
    params = {"num_rounds": 1, "max_depth": 2}
    ray.get([task.remote(folds[0], params, 1) for _ in range(cores)])


def best_of(found):
    return max(value for _, value in found["points"])


def time_to(found, target):
    return min(
        (at for at, value in found["points"] if value >= target - 1e-9), default=float("inf")
    )


if __name__ == "__main__":
    main()
