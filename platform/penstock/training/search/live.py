"""The table that people watch while a search runs."""

from collections.abc import Callable, Sequence

from penstock.cluster.markers import TableMarker
from penstock.training.declarations import Model
from penstock.training.search.ledger import Trial
from penstock.training.search.summary import parameters_as_text

_NUM_ROWS = 10


def table_of(
    model: Model, show: Callable[[TableMarker], None]
) -> Callable[[Sequence[Trial]], None]:
    """Give what hears of a search's trials and shows the best of them."""
    metric = model.primary_metric
    sign = -1 if model.higher_is_better(metric) else 1

    def watch(trials: Sequence[Trial]) -> None:
        valued = [(trial.value(metric), trial) for trial in trials]
        known = [(value, trial) for value, trial in valued if value is not None]
        # Who was measured on more folds stands first: fewer folds tell less.
        known.sort(key=lambda each: (each[1].state != "complete", sign * each[0]))
        rows = tuple(
            (
                str(trial.number),
                trial.estimator,
                trial.state,
                str(len(trial.folds)),
                f"{value:.4f}",
                f"{trial.fit_s:.1f}",
                parameters_as_text(trial.params),
            )
            for value, trial in known[:_NUM_ROWS]
        )
        columns = ("trial", "estimator", "state", "folds", metric, "fit, s", "values")
        show(TableMarker(title="best so far", columns=columns, rows=rows))

    return watch
