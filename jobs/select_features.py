"""Rank a model's features over folds of time: `python jobs/select_features.py card_fraud`."""

import argparse

from penstock.cluster.job import job

_WORKER_IMPORTS = ("penstock.training.importance", "sklearn.feature_selection", "xgboost")


def main() -> None:
    """Parse, select, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case", help="a folder of the feature repo")
    parser.add_argument("--folds", type=int, default=5, help="how many folds of time")
    parser.add_argument("--top", type=int, help="keep at most so many features")
    parser.add_argument("--service", help="the candidates; the model's own service if left out")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with job("select_features", use_case=given.use_case, worker_imports=_WORKER_IMPORTS) as running:
        from penstock.training.declarations import load_model
        from penstock.training.selection import select

        found = select(
            running.settings,
            load_model(running.settings, given.use_case),
            num_folds=given.folds,
            top=given.top,
            service=given.service,
            seed=given.seed,
            progress=running.progress,
        )
        running.finish(found)


if __name__ == "__main__":
    main()
