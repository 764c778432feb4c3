"""Several estimators that answer as one: the weighted mean of their scores, as one graph."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import orjson

from penstock.training import preprocessing
from penstock.training.declarations import Ensemble, Member
from penstock.training.estimators import families, graph
from penstock.training.estimators.base import (
    FitJob,
    Fitted,
    Labels,
    NativeModel,
    Scaled,
    Scores,
)
from penstock.training.preprocessing import Array, Preprocessing

_MEMBERS_FILE = "members.json"
_PREPROCESSING_FILE = "preprocessing.json"


def fit(config: Ensemble, scaled: Scaled, labels: Labels, job: FitJob) -> Fitted:
    """Fit each member: side by side as Ray tasks, or by Ray Train where a task is too small."""
    import ray

    columns = scaled.astype(np.float64)
    again = [_again(member, columns) for member in config.members]
    labels_of_all = ray.put(labels)
    waiting: list[Any] = []
    for number, (member, own) in enumerate(zip(config.members, again, strict=True)):
        rows, its = own.apply(columns), replace(job, name=f"{job.name}-member-{number}")
        if families.cpus_of_one_task(member.estimator) is None:
            waiting.append(families.fit(member.estimator, rows, labels, its))
        else:
            waiting.append(families.fit_in_task(member.estimator, rows, labels_of_all, its))
    fitted = [each if isinstance(each, Fitted) else ray.get(each) for each in waiting]
    return together(config, again, fitted)


def together(config: Ensemble, again: list[Preprocessing], fitted: list[Fitted]) -> Fitted:
    """Put fitted members together."""
    graphs = [graph.assemble(own, each.onnx) for own, each in zip(again, fitted, strict=True)]
    native = Together(
        shares=config.shares,
        preprocessings=tuple(again),
        members=tuple(each.native for each in fitted),
    )
    whole = graph.weighted_mean(
        list(zip(config.shares, graphs, strict=True)), num_columns=len(again[0].means)
    )
    facts = {
        f"member_{number}": f"{share:.3f} of {member.estimator.kind}"
        for number, (share, member) in enumerate(zip(config.shares, config.members, strict=True))
    }
    return Fitted(native=native, onnx=whole, facts=facts)


def _again(member: Member, columns: Array) -> Preprocessing:
    names = tuple(f"column_{place}" for place in range(columns.shape[1]))
    return preprocessing.fit(columns, feature_names=names, policy=member.preprocessing)


@dataclass(frozen=True, kw_only=True)
class Together:
    """The members' own weights, each in a folder."""

    family: ClassVar[str] = "ensemble"
    shares: tuple[float, ...]
    preprocessings: tuple[Preprocessing, ...]
    members: tuple[NativeModel, ...]

    def predict(self, scaled: Scaled) -> Scores:
        """Give [n] scores."""
        columns = scaled.astype(np.float64)
        total = np.zeros(len(scaled))
        for share, own, member in zip(self.shares, self.preprocessings, self.members, strict=True):
            total += share * member.predict(own.apply(columns))
        return total

    def save(self, folder: Path) -> None:
        """Write members.json and a folder for each member."""
        told: list[Mapping[str, Any]] = []
        for number, (share, own, member) in enumerate(
            zip(self.shares, self.preprocessings, self.members, strict=True)
        ):
            place = _folder(folder, number)
            place.mkdir()
            member.save(place)
            (place / _PREPROCESSING_FILE).write_bytes(orjson.dumps(own.to_json()))
            told.append({"share": share, "family": member.family})
        (folder / _MEMBERS_FILE).write_bytes(orjson.dumps(told))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote."""
        told = orjson.loads((folder / _MEMBERS_FILE).read_bytes())
        places = [_folder(folder, number) for number in range(len(told))]
        return cls(
            shares=tuple(float(each["share"]) for each in told),
            preprocessings=tuple(
                Preprocessing.from_json(orjson.loads((place / _PREPROCESSING_FILE).read_bytes()))
                for place in places
            ),
            members=tuple(
                families.load(str(each["family"]), place)
                for each, place in zip(told, places, strict=True)
            ),
        )


def _folder(folder: Path, number: int) -> Path:
    return folder / f"member-{number}"
