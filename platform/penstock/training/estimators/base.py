"""What every family of estimators takes and gives."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

INPUT = "scaled"
"""The input of an estimator's own graph: float32 [n, F], filled and standardised."""
OUTPUT = "score"
"""Its output: float32 [n], the probability of a positive or, in regression, the number."""

Scaled = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int8] | npt.NDArray[np.float64]
Scores = npt.NDArray[np.float64]


class NativeModel(Protocol):
    """A fitted estimator in its own library's terms, stored without pickle."""

    family: ClassVar[str]

    def predict(self, scaled: Scaled) -> Scores:
        """Give [n] scores for [n, F] filled and standardised features."""
        ...

    def save(self, folder: Path) -> None:
        """Write all that `load` needs into the folder."""
        ...

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read back what `save` wrote, running nothing of what the files hold."""
        ...


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """Where and for what a fit runs."""

    name: str
    """Names the fit's checkpoints: the same name goes on where a lost fit stopped."""
    checkpoints: Path
    """A folder that every worker sees."""
    import_folders: tuple[str, ...] = ()
    """Folders to import a user's own module from."""
    event_times: npt.NDArray[np.datetime64] | None = None
    """[n], in order: when each row's event was; None: early stopping looks at no label's delay."""
    keep_in: Path | None = None
    """A folder for the checkpoints of a net that is fitted in one process; None: it keeps none."""
    begin_from: Path | None = None
    """Such a folder of another fit, which this one goes on from."""
    label_delay: timedelta = timedelta(0)
    """How long after its event a label becomes known."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit leaves."""

    native: NativeModel
    onnx: bytes
    """The estimator's own graph, from `INPUT` to `OUTPUT`."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics by epoch or boosting round, in order."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was decided on the way, for the record of the run."""
