"""Searches a model's parameters, then trains and registers the best: `python jobs/tune.py churn`.

The search looks at folds of time that end before the model's test begins.
"""

import argparse

from penstock.cluster.job import job

_WORKER_IMPORTS = ("penstock.training.search.measuring", "sklearn.linear_model", "xgboost")


def main() -> None:
    """Parse, search, train, register, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case", help="a folder of the feature repo")
    parser.add_argument("--estimator", help="its name in model.py; the model's default if left out")
    parser.add_argument("--auto", action="store_true", help="search families, end with an ensemble")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--time-s", type=float)
    parser.add_argument("--cost", type=float)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--stopping", choices=("asha", "median", "none"), default="asha")
    parser.add_argument("--population", type=int)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--parallel", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--code-state", help="what the command found, where no .git comes along")
    given = parser.parse_args()
    with job("tune", use_case=given.use_case, worker_imports=_WORKER_IMPORTS) as running:
        # Here, not above: the settings keep MLflow from calling home, and come first.
        from penstock.registry.registration import register
        from penstock.training.code_state import receive
        from penstock.training.declarations import load_model
        from penstock.training.search.asked import (
            Asked,
            declared_search,
            families_of,
            population_for,
        )
        from penstock.training.search.budget import Budget
        from penstock.training.search.live import table_of
        from penstock.training.search.tuning import tune
        from penstock.training.search.winner import tuned_model
        from penstock.training.source_text import as_source
        from penstock.training.trainer import train

        settings, more = running.settings, {"progress": running.progress}
        model = load_model(settings, given.use_case)
        searches, estimators = (
            families_of(model) if given.auto else declared_search(model, given.estimator)
        )
        population, num_trials, rule = None, given.trials, given.stopping
        if given.population is not None:
            population = population_for(
                searches,
                estimators,
                size=given.population,
                num_generations=given.generations,
                seed=given.seed,
            )
            # Whoever is worse goes on as a copy of whoever is better; nobody is given up.
            num_trials, rule = population.num_trials, "none"
        asked = Asked(
            searches=searches,
            estimators=estimators,
            is_auto=given.auto,
            population=population,
            budget=Budget(num_trials=num_trials, time_s=given.time_s, money=given.cost),
            rule=rule,
            num_folds=given.folds,
            num_parallel=given.parallel,
            seed=given.seed,
        )
        watch = table_of(model, running.table)
        found = tune(settings, model, asked, request_id=running.request_id, watch=watch, **more)
        tuned, name = tuned_model(model, found)
        code = receive(settings, given.code_state)
        best_id = f"{running.request_id}-best"
        run = train(
            settings,
            tuned,
            estimator=name,
            request_id=best_id,
            code=code,
            tuning_run=found.run_id,
            **more,
        )
        version = register(settings, run)
        running.account.describe(model_versions=(version.label,))
        running.finish(
            {
                "tuning": found.model_dump(mode="json"),
                "run": run.model_dump(mode="json"),
                "version": version.model_dump(mode="json"),
                "declaration": f'"{name}": {as_source(tuned.estimators[name])}',
            }
        )


if __name__ == "__main__":
    main()
