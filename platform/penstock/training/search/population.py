"""Population based training of nets: values change while nets train, as the better ones lead.

A population of nets trains side by side, a generation of epochs at a time. Between two, a net of
the worst quarter goes on from the weights of one of the best quarter, with that one's values
changed a little (Jaderberg et al., Population Based Training of Neural Networks, 2017). What comes
out is not one value but a schedule: the stages of the best net's line.

Each member of each generation is a trial of the search, and its declaration says all of it: as many
epochs as its line has, and the line's stages. Trained from the start it is the same net; its
parent's checkpoints only save the way.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel

from penstock.errors import UserError
from penstock.records import Record
from penstock.training.declarations import Estimator, Stage, TorchMLP, TorchModule
from penstock.training.search.ledger import Trial
from penstock.training.search_declarations import Choice, Floats, Ints, Search, with_values
from penstock.training.torch_declarations import STAGED

PARENT, WHY = "parent", "why"
"""Beside a trial's values: whose weights it goes on from, and the reason."""
_Net = TypeVar("_Net", bound=BaseModel)
_QUARTER = 4
_FACTORS = (0.8, 1.2)


class Population(Record):
    """How many nets train side by side, and how often they are compared."""

    size: int
    num_generations: int
    num_epochs: int
    """Of the declared net; the generations share them."""
    seed: int

    @property
    def num_trials(self) -> int:
        """Members of all generations."""
        return self.size * self.num_generations

    def epochs_by(self, generation: int) -> int:
        """Give the epochs that a net has behind it after a generation, from 0."""
        return (generation + 1) * self.num_epochs // self.num_generations


class Proposal(NamedTuple):
    """A member of the next generation."""

    estimator: str
    values: dict[str, Any]


def population_of(
    config: Estimator, search: Search, *, size: int, num_generations: int, seed: int
) -> Population:
    """Plan a population for a declared net.

    Raises:
        UserError: it is no net, or something is searched that cannot change while one trains.
    """
    if not isinstance(config, TorchMLP | TorchModule):
        raise UserError(
            f"a population trains nets, and this is a {type(config).__name__}",
            allowed="TorchMLP, TorchModule",
        )
    if size < 2:
        raise UserError(f"a population of {size} has nobody to learn from", allowed="2 or more")
    fixed = [name for name in search.dimensions if name not in STAGED]
    if fixed:
        raise UserError(
            f"{', '.join(fixed)} cannot change while a net trains",
            allowed=f"for a population a search of {', '.join(STAGED)} alone",
            next_step="search the rest first, without --population",
        )
    nothing = [
        name
        for name, dimension in search.dimensions.items()
        if isinstance(dimension, Choice) and None in dimension.options
    ]
    if nothing:
        raise UserError(
            f"{', '.join(nothing)} may be none, which a stage cannot change to",
            allowed="numbers to choose among",
        )
    if not 1 <= num_generations <= config.num_epochs:
        raise UserError(
            f"{config.num_epochs} epochs do not make {num_generations} generations",
            allowed=f"1 to {config.num_epochs}",
        )
    return Population(
        size=size, num_generations=num_generations, num_epochs=config.num_epochs, seed=seed
    )


def propose_member(
    population: Population,
    name: str,
    search: Search,
    declared: Mapping[str, Any],
    trials: Sequence[Trial],
    *,
    metric: str,
    higher_is_better: bool,
) -> Proposal | None:
    """Give the next member, or None: the generation before it is not over.

    Args:
        population: the plan.
        name: of the estimator.
        search: its space.
        declared: what is declared, moved into the space: the first member of all.
        trials: all so far, generation after generation.
        metric: by whose mean over the folds members are compared.
        higher_is_better: which way it points.
    """
    generation, member = divmod(len(trials), population.size)
    draw = np.random.default_rng([population.seed, len(trials)])
    if generation == 0:
        values = dict(declared) if member == 0 else _drawn(search, draw)
        why = "as declared" if member == 0 else "drawn"
        return Proposal(name, {**values, PARENT: None, WHY: why})
    before = trials[(generation - 1) * population.size : generation * population.size]
    if any(trial.state == "running" for trial in before):
        return None
    sign = -1 if higher_is_better else 1
    complete = [trial for trial in before if trial.state == "complete"]
    ranked = sorted(complete, key=lambda each: (sign * (each.value(metric) or 0.0), each.number))
    if not ranked:
        return None
    own = before[member]
    num_worst = max(len(before) // _QUARTER, 1)
    # Who failed or ended early stands behind all others.
    place = ranked.index(own) if own in ranked else len(before)
    if place < len(before) - num_worst:
        values = {field: own.params[field] for field in search.dimensions}
        return Proposal(name, {**values, PARENT: own.number, WHY: "goes on as it was"})
    parent = ranked[draw.integers(max(len(ranked) // _QUARTER, 1))]
    values = {
        field: _changed(dimension, parent.params[field], draw)
        for field, dimension in search.dimensions.items()
    }
    why = f"trial {own.number} was among the worst {num_worst}, trial {parent.number} leads"
    return Proposal(name, {**values, PARENT: parent.number, WHY: why})


def declared_of(trial: Trial, trials: Sequence[Trial], population: Population, net: _Net) -> _Net:
    """Give the declaration that trains to this member: its epochs, and the stages of its line.

    Raises:
        DeclarationError: values contradict the net's other fields.
    """
    line = [trial]
    while (parent := line[0].params[PARENT]) is not None:
        line.insert(0, trials[parent])
    own = [{field: each.params[field] for field in _fields(each)} for each in line]
    stages = [
        Stage(
            from_epoch=population.epochs_by(generation - 1),
            **{
                field: value
                for field, value in values.items()
                if value != own[generation - 1][field]
            },
        )
        for generation, values in enumerate(own)
        if generation and values != own[generation - 1]
    ]
    changed = {
        **own[0],
        "num_epochs": population.epochs_by(len(line) - 1),
        # A schedule of its own would look at epochs that the line may never have.
        "schedule": "constant",
        "warmup_share": None,
        "stages": tuple(stage.model_dump() for stage in stages),
    }
    return with_values(net, changed, of=f"trial {trial.number}")


class Trail(NamedTuple):
    """Where one fold of a member keeps its checkpoints, and where its parent kept them."""

    own: Path
    parent: Path | None


def trail_of(trial: Trial, fold: int, folder: Path) -> Trail:
    """Find the folders of a member's checkpoints on a fold."""

    def of(number: int) -> Path:
        return folder / f"trial-{number}" / f"fold-{fold}"

    parent = trial.params[PARENT]
    return Trail(of(trial.number), None if parent is None else of(parent))


def _fields(trial: Trial) -> list[str]:
    return [name for name in trial.params if name not in (PARENT, WHY)]


def _drawn(search: Search, draw: np.random.Generator) -> dict[str, Any]:
    return {field: _one_of(dimension, draw) for field, dimension in search.dimensions.items()}


def _one_of(dimension: Ints | Floats | Choice, draw: np.random.Generator) -> Any:
    if isinstance(dimension, Choice):
        return dimension.options[draw.integers(len(dimension.options))]
    low, high = dimension.low, dimension.high
    found = (
        low * (high / low) ** draw.random() if dimension.log else low + (high - low) * draw.random()
    )
    return dimension.nearest(found)


def _changed(dimension: Ints | Floats | Choice, value: Any, draw: np.random.Generator) -> Any:
    """Give a value near the parent's: a factor of it, or now and then another option."""
    if isinstance(dimension, Choice):
        return _one_of(dimension, draw) if draw.random() < 1 / _QUARTER else value
    return dimension.nearest(value * _FACTORS[draw.integers(len(_FACTORS))])
