"""Measures estimators of a use case's model on its folds; registers nothing.

python jobs/measure.py card_fraud --estimator xgboost
"""

import argparse

from penstock.cluster.job import job


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
    parser.add_argument("--code-state", help="what the command found, where no .git comes along")
    given = parser.parse_args()
    with job("measure", use_case=given.use_case) as running:
        # Here, not above: the settings keep MLflow from calling home, and come first.
        from penstock.registry.candidates import names_to_train
        from penstock.training.code_state import receive
        from penstock.training.declarations import load_model
        from penstock.training.fold_run import measure_each
        from penstock.training.planned_cost import label_rows, subject_of

        settings = running.settings
        model = load_model(settings, given.use_case)
        names = names_to_train(model, given.estimator, every=given.all)
        rows = label_rows(settings, model)
        running.account.describe(subject=subject_of(names), num_rows=rows)
        runs, failures = measure_each(
            settings,
            model,
            names,
            request_id=running.request_id,
            code=receive(settings, given.code_state),
            progress=running.progress,
        )
        if runs:
            measured = [run.model_dump(mode="json") for run in runs]
            running.finish({"model": model.name, "measured": measured})
        if failures:
            raise failures[0]


if __name__ == "__main__":
    main()
