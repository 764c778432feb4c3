"""What a search is asked for, before anything heavy is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.errors import UserError
from penstock.training.declarations import Estimator, Model, Search
from penstock.training.search.budget import Budget
from penstock.training.search.families_space import families
from penstock.training.search.population import Population, population_of
from penstock.training.search.stopping import Rule


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a search is asked for."""

    searches: Mapping[str, Search]
    """By estimator, what is tried of its fields, and of its preprocessing."""
    estimators: Mapping[str, Estimator]
    """The same ones, as they are declared."""
    is_auto: bool = False
    """Families are searched, and what comes out is an ensemble."""
    budget: Budget
    rule: Rule = "asha"
    population: Population | None = None
    """The nets of one estimator train side by side and learn from each other."""
    num_folds: int = 4
    seed: int = 0
    num_parallel: int | None = None
    """Trials at a time; None: as many as there are cores."""

    def __post_init__(self) -> None:
        if self.num_folds < 1:
            raise UserError(f"{self.num_folds} folds measure nothing", allowed="1 or more")


def population_for(
    searches: Mapping[str, Search],
    estimators: Mapping[str, Estimator],
    *,
    size: int,
    num_generations: int,
    seed: int,
) -> Population:
    """Plan a population of the one estimator that is searched.

    Raises:
        UserError: it is no net, or something is searched that cannot change while one trains.
    """
    ((name, search),) = searches.items()
    return population_of(
        estimators[name], search, size=size, num_generations=num_generations, seed=seed
    )


def families_of(model: Model) -> tuple[dict[str, Search], dict[str, Estimator]]:
    """Give the search over families that suit the model's label, and each family's default."""
    found = families(model)
    searches = {name: search for name, (_, search) in found.items()}
    return searches, {name: config for name, (config, _) in found.items()}


def declared_search(
    model: Model, estimator: str | None
) -> tuple[dict[str, Search], dict[str, Estimator]]:
    """Give the declared search of one estimator of the model, and that estimator.

    Raises:
        NotFoundError: the model has no such estimator.
        UserError: nothing of it is declared to be searched.
    """
    name = estimator or model.default_estimator
    model.estimator(name)
    if name not in model.search:
        declared = ", ".join(model.search)
        raise UserError(
            f"model.py of {model.use_case} declares nothing to search for {name!r}",
            allowed=declared or 'search={"' + name + '": Search(...)} in the Model',
            next_step="declare its ranges, or search families with --auto",
        )
    return {name: model.search[name]}, {name: model.estimators[name]}
