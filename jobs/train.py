"""Trains estimators of a use case's model and registers each as a model version.

python jobs/train.py card_fraud --estimator xgboost
"""

import argparse
from functools import partial
from typing import Any

from penstock.cluster.job import job

_WORKER_IMPORTS = ("penstock.training.estimators.scikit", "sklearn.linear_model")


def main() -> None:
    """Parse, build, call, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case")
    parser.add_argument(
        "--estimator",
        action="append",
        default=[],
        help="its name in model.py, as often as there are; the model's default if left out",
    )
    parser.add_argument("--all", action="store_true", help="every estimator of the model")
    parser.add_argument("--promote", action="store_true", help="make the best the champion")
    parser.add_argument("--code-state", help="what the command found, where no .git comes along")
    given = parser.parse_args()
    with job("train", use_case=given.use_case, worker_imports=_WORKER_IMPORTS) as running:
        # Here, not above: the settings keep MLflow from calling home, and come first.
        from penstock.registry.candidates import compare, names_to_train, promote_once
        from penstock.registry.registration import register
        from penstock.training.code_state import receive
        from penstock.training.declarations import load_model
        from penstock.training.planned_cost import label_rows, subject_of
        from penstock.training.trainer import train

        settings = running.settings
        model = load_model(settings, given.use_case)
        more = {"progress": running.progress, "code": receive(settings, given.code_state)}

        def train_one(name: str) -> Any:
            request_id = f"{running.request_id}-{name}"
            return train(settings, model, estimator=name, request_id=request_id, **more)

        names = names_to_train(model, given.estimator, every=given.all)
        account = running.account
        account.describe(subject=subject_of(names), num_rows=label_rows(settings, model))
        found = compare(
            model,
            names,
            train=train_one,
            register=partial(register, settings),
            promote=partial(promote_once, settings, model.name) if given.promote else None,
            progress=running.progress,
        )
        account.describe(model_versions=tuple(v.label for _, v in found.trained))
        if found.trained:
            running.finish(found.report(model.name))
        if found.failures:
            raise found.failures[0]


if __name__ == "__main__":
    main()
