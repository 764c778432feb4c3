"""Makes a run again from its record alone, and judges whether the same came out."""

from collections.abc import Mapping
from typing import Any, Literal

import orjson
from pydantic import ValidationError

from penstock.errors import GateRefusedError, NotFoundError, UserError
from penstock.handover import TRAINING_FILE
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.settings import Settings
from penstock.training import environment
from penstock.training.code_state import code_digest
from penstock.training.declarations import Model
from penstock.training.runs import PATCH_FILE, Provenance, Run, find_run, run_folder
from penstock.training.trainer import train

TOLERANCE = 1e-9
GPU_TOLERANCE = 1e-3
"""On a GPU the order of a sum, and so its last digits, is not fixed."""
_MAX_SHOWN = 8


class Difference(Record):
    """Something that is not what it was."""

    what: str
    recorded: str
    again: str


class Verdict(Record):
    """What came out of making a run again."""

    verdict: Literal["reproduced", "same within tolerance", "differs"]
    """reproduced: the very same predictions; within tolerance: the metrics alone are the same."""
    run_id: str
    again_run_id: str
    """The tracked run of the second time."""
    estimator: str
    tolerance: float
    metrics: dict[str, tuple[float, float]]
    """By name: recorded, and again."""
    differences: tuple[Difference, ...]
    """What came out otherwise."""
    circumstances: tuple[Difference, ...]
    """What it ran on otherwise, and may be the reason."""


def reproduce(
    settings: Settings,
    run_id: str,
    *,
    request_id: str,
    anyway: bool = False,
    progress: Progress = silent,
) -> Verdict:
    """Train again on what the run's record says, and compare. No model version is made.

    The training set is joined again from the table versions of the record; the configuration,
    split and preprocessing are the record's, whatever model.py declares by now.

    Args:
        settings: where tables and runs are.
        run_id: the run.
        request_id: names the request over all attempts.
        anyway: go on where code or packages are not those of the record.
        progress: hears of each step.

    Raises:
        NotFoundError: there is no such run, or one of its table versions is gone.
        UserError: the run is older than what is needed to make it again.
        GateRefusedError: code or packages are others, and `anyway` is not given.
    """
    run = find_run(settings, run_id)
    record, provenance = _record(settings, run)
    others = circumstances(settings, run, provenance, record["packages"])
    stopping = [each for each in others if each.what in ("code", "packages")]
    if stopping and not anyway:
        raise GateRefusedError(
            f"the run {run.run_id} was made with other code or packages: {_told(stopping)}",
            allowed="those of the run",
            next_step=_way_back(settings, run, provenance, stopping),
        )
    again = train(
        settings,
        _declared(record),
        estimator=run.estimator,
        request_id=request_id,
        progress=progress,
        made_again=run,
    )
    return judge(run, again, circumstances=tuple(others))


def judge(run: Run, again: Run, *, circumstances: tuple[Difference, ...] = ()) -> Verdict:
    """Compare two runs: rows, metrics and predictions."""
    first, second = _known(run), _known(again)
    has_gpu = bool(first.hardware.accelerators or second.hardware.accelerators)
    tolerance = GPU_TOLERANCE if has_gpu else TOLERANCE
    metrics = {
        name: (value, again.metrics.get(name, float("nan"))) for name, value in run.metrics.items()
    }
    differences = [
        Difference(what=what, recorded=recorded, again=now)
        for what, recorded, now in (
            ("training rows", first.training_set_digest, second.training_set_digest),
            ("table versions", str(run.table_versions), str(again.table_versions)),
            ("predictions", first.predictions_digest, second.predictions_digest),
        )
        if recorded != now
    ]
    # A NaN is near nothing: a metric that is not there any more is a difference.
    apart = [name for name, (was, now) in metrics.items() if not abs(was - now) <= tolerance]
    differences += [
        Difference(what=name, recorded=repr(metrics[name][0]), again=repr(metrics[name][1]))
        for name in apart
    ]
    others = [each.what for each in differences if each.what != "predictions"]
    was, is_now = first.feature_service_digest, second.feature_service_digest
    if was != is_now:
        service = Difference(what="feature service", recorded=was, again=is_now)
        circumstances = (*circumstances, service)
    return Verdict(
        verdict="differs" if others else "same within tolerance" if differences else "reproduced",
        run_id=run.run_id,
        again_run_id=again.run_id,
        estimator=run.estimator,
        tolerance=tolerance,
        metrics=metrics,
        differences=tuple(differences),
        circumstances=circumstances,
    )


def circumstances(
    settings: Settings, run: Run, provenance: Provenance, packages: Mapping[str, str]
) -> list[Difference]:
    """Tell what this process would run on otherwise than the run did."""
    found = []
    now = code_digest(settings, run.use_case)
    if now != provenance.code_digest:
        found.append(Difference(what="code", recorded=provenance.code_digest, again=now))
    installed = environment.packages()
    names = sorted(
        name
        for name in packages.keys() | installed.keys()
        if packages.get(name) != installed.get(name)
    )
    if names:
        found.append(
            Difference(
                what="packages",
                recorded=_versions(packages, names),
                again=_versions(installed, names),
            )
        )
    here = environment.hardware()
    for what in ("cpu_model", "num_cores", "accelerators"):
        was, is_now = getattr(provenance.hardware, what), getattr(here, what)
        if was != is_now:
            found.append(Difference(what=what, recorded=str(was), again=str(is_now)))
    return found


def _record(settings: Settings, run: Run) -> tuple[dict[str, Any], Provenance]:
    file = run_folder(settings, run.run_id) / "bundle" / TRAINING_FILE
    if not file.is_file():
        raise NotFoundError(
            f"the bundle of the run {run.run_id} is gone: there is no {file}",
            next_step="bring the folder back; the run cannot be made again without it",
        )
    record: dict[str, Any] = orjson.loads(file.read_bytes())
    return record, _known(run)


def _known(run: Run) -> Provenance:
    if run.provenance is None:
        raise UserError(
            f"the run {run.run_id} is older than the record of what a run stands on",
            next_step="train again; runs from now on can be made again",
        )
    return run.provenance


def _declared(record: Mapping[str, Any]) -> Model:
    try:
        return Model.model_validate(record["declaration"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"the model as the run declares it does not fit this Penstock: {key}: {first['msg']}",
            next_step="use the code of the run's own commit",
        ) from None


def _way_back(
    settings: Settings, run: Run, provenance: Provenance, differences: list[Difference]
) -> str:
    steps = []
    for each in differences:
        if each.what == "packages":
            steps.append(f"install {each.recorded}")
        elif run.git_commit is None:
            steps.append("bring back the code of the run: it was under no git")
        else:
            steps.append(f"`git checkout {run.git_commit.removesuffix('-dirty')}`")
            if provenance.patch_digest:
                patch = run_folder(settings, run.run_id) / PATCH_FILE
                steps.append(f"`git apply {patch}`")
            if provenance.patch_left_out:
                steps.append(f"bring back {_shown(list(provenance.patch_left_out))} by hand")
    return f"{', then '.join(steps)}; or add --anyway to see what comes out as things are"


def _told(differences: list[Difference]) -> str:
    return "; ".join(
        f"{each.what} {each.recorded[:12]} by then, {each.again[:12]} now"
        if each.what == "code"
        else f"{each.what}: {each.recorded} by then, {each.again} now"
        for each in differences
    )


def _versions(packages: Mapping[str, str], names: list[str]) -> str:
    return _shown([f"{name} {packages.get(name, 'not installed')}" for name in names])


def _shown(items: list[str]) -> str:
    more = len(items) - _MAX_SHOWN
    return ", ".join(items[:_MAX_SHOWN]) + (f" and {more} more" if more > 0 else "")


def refuse_difference(verdict: Verdict) -> None:
    """End with the gate's exit code where something else came out.

    Raises:
        GateRefusedError: the verdict is `differs`.
    """
    if verdict.verdict == "differs":
        what = ", ".join(each.what for each in verdict.differences)
        why = ", ".join(each.what for each in verdict.circumstances)
        raise GateRefusedError(
            f"the run {verdict.run_id} did not come out again: {what} differ",
            allowed=f"metrics within {verdict.tolerance:g}, and the same rows",
            next_step=f"look first at what is otherwise: {why}"
            if why
            else f"compare the runs {verdict.run_id} and {verdict.again_run_id} in MLflow",
        )
