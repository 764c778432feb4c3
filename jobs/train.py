"""Trains estimators of a use case's model and registers each as a model version.

python jobs/train.py card_fraud --estimator xgboost
"""

import argparse

from penstock.cluster.job import job

_WORKER_IMPORTS = ("penstock.training.estimators.scikit", "sklearn.linear_model")


def main() -> None:
    """Parse, build, call, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case")
    parser.add_argument("--estimator", help="its name in model.py; the model's default if left out")
    parser.add_argument("--all", action="store_true", help="every estimator of the model")
    parser.add_argument("--promote", action="store_true", help="make the best the champion")
    parser.add_argument("--code-state", help="what the command found, where no .git comes along")
    given = parser.parse_args()
    with job("train", worker_imports=_WORKER_IMPORTS) as running:
        # Here, not above: the settings keep MLflow from calling home, and come first.
        from penstock.registry.promotion import promote
        from penstock.registry.registration import register
        from penstock.registry.versions import CHAMPION, ModelRegistry
        from penstock.training.code_state import receive
        from penstock.training.declarations import load_model
        from penstock.training.trainer import train

        settings = running.settings
        model = load_model(settings, given.use_case)
        code = receive(settings, given.code_state)
        names = (
            list(model.estimators) if given.all else [given.estimator or model.default_estimator]
        )
        runs, failures = [], []
        for name in names:
            request_id = f"{running.request_id}-{name}"
            more = {"progress": running.progress, "code": code}
            try:
                runs.append(train(settings, model, estimator=name, request_id=request_id, **more))
            except Exception as error:  # noqa: BLE001  # raised below: first the others' turn
                print(f"{name} failed: {error}", flush=True)
                failures.append(error)
        # The last one registered is the challenger, so the best goes last.
        runs.sort(key=lambda run: model.rank(run.metrics))
        done = []
        for number, run in enumerate(runs):
            running.progress("register", number, len(runs), unit="versions")
            try:
                version = register(settings, run).model_dump(mode="json")
                done.append({"run": run.model_dump(mode="json"), "version": version})
            except Exception as error:  # noqa: BLE001  # the same
                print(f"{run.estimator} was not registered: {error}", flush=True)
                failures.append(error)
        result = {"model": model.name, "trained": done}
        if given.promote and done:
            best = done[-1]["version"]["version"]
            champion = ModelRegistry(settings).aliases(model.name).get(CHAMPION)
            try:
                # A request that is made again finds its version promoted already.
                if champion != best:
                    promote(settings, model.name, best, expected=champion)
                result["promoted"] = best
            except Exception as error:  # noqa: BLE001  # the same
                failures.append(error)
        if done:
            running.finish(result)
        if failures:
            raise failures[0]


if __name__ == "__main__":
    main()
