"""Looks at the truths of an A/B rollout, beside the thread that watches its guards.

Each look computes everything anew from the tables of predictions and feedback, so there is nothing
that a kill could lose. Who is in which arm is asked of the rollout's own hash, not of the version
that answered: what the new version failed on, the old one answers, and it still counts as the new
one's. Otherwise a version that fails on hard cases would hand them to the other side.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from penstock.errors import NotFoundError, UserError
from penstock.logs import redact
from penstock.records import Record
from penstock.registry.package import VerifiedPackage, verify
from penstock.serving import rollout_files
from penstock.serving.ab_policy import Evidence, next_look_s
from penstock.serving.feedback_collection import collect_feedback
from penstock.serving.feedback_target import target_of
from penstock.serving.log_collection import SERVED_AT, collect
from penstock.serving.outcomes import check_outcome, moments
from penstock.serving.rollout import NUM_BUCKETS, RolloutPlan, bucket
from penstock.serving.rollout_files import Rollout, Stretch
from penstock.serving.truth_policy import json_path
from penstock.serving.truths import predictions_with_truth
from penstock.settings import Settings

_SETTLING = timedelta(seconds=2)
"""Replicas follow the rollout's file within half a second."""
_SPLITTING = frozenset({"int64", "string", "bool"})


class Compared(Record):
    """What a look must know of the two versions."""

    use_case: str
    thresholds: dict[int, float | None]
    is_split_by_bool: bool

    @classmethod
    def of(cls, settings: Settings, rollout: Rollout) -> "Compared":
        """Read it out of the packages.

        Raises:
            IntegrityError: a package is not the one that was registered.
        """
        found = {
            each.version: verify(Path(each.package_path), settings, digest=each.digest).signature
            for each in (rollout.old, rollout.new)
        }
        thresholds = {version: signature.threshold for version, signature in found.items()}
        new = found[rollout.new.version]
        kinds = {field.name: field.dtype for field in new.request_fields}
        return cls(
            use_case=new.use_case,
            thresholds=thresholds,
            is_split_by_bool=kinds[rollout.plan.split_by] == "bool",
        )


def check_plan(
    settings: Settings, plan: RolloutPlan, *, new: VerifiedPackage, old: VerifiedPackage
) -> None:
    """Refuse an A/B that could never be decided; other rollouts pass.

    Raises:
        UserError: the outcome is not of this model, the field that splits is no name of anything,
            or predictions are not logged.
    """
    if plan.outcome is None:
        return
    if not settings.serving.log_predictions:
        raise UserError(
            "predictions are not logged, so no truth would find its version",
            next_step="set serving.log_predictions to true, and deploy once more",
        )
    naming = [f.name for f in new.signature.request_fields if f.dtype in _SPLITTING]
    if plan.split_by not in naming:
        raise UserError(
            f"{plan.split_by} is a time or a fraction, which names nobody that comes again",
            allowed=f"--split-by of {', '.join(naming) or 'no field of this model'}",
        )
    thresholds = {
        plan.from_version: old.signature.threshold,
        plan.to_version: new.signature.threshold,
    }
    package = settings.models_path / plan.model / str(plan.to_version)
    is_binary = target_of(settings, package).is_binary
    check_outcome(plan.outcome, is_binary=is_binary, thresholds=thresholds)


def stretches(rollout: Rollout, until: datetime) -> tuple[Stretch, ...]:
    """Give the times in which the new version had its share, by now."""
    return (*rollout.stretches, Stretch(since=rollout.stage_started_at, until=until))


def began_at(rollout: Rollout) -> datetime:
    """When the new version first had its share."""
    return stretches(rollout, rollout.stage_started_at)[0].since


def look(settings: Settings, rollout: Rollout, compared: Compared) -> Evidence:
    """Collect predictions and feedback, and weigh what is known.

    Raises:
        BusyError: another process has been collecting for a minute.
    """
    now = rollout_files.now()
    collect(settings, compared.use_case)
    collect_feedback(settings, compared.use_case)
    return weigh(settings, rollout, compared, now=now)


def weigh(settings: Settings, rollout: Rollout, compared: Compared, *, now: datetime) -> Evidence:
    """Weigh what the tables know of a rollout's predictions by now."""
    plan = rollout.plan
    assert plan.outcome is not None  # noqa: S101 - the plan's own check says so
    rows = _rows(settings, rollout, compared, now)
    rows = in_arms(rows, rollout, is_split_by_bool=compared.is_split_by_bool)
    new, old = moments(rows.drop_nulls("truth"), plan.outcome, compared.thresholds)
    num_new = int(rows["is_new"].sum())
    return Evidence.of(
        plan,
        new=new,
        old=old,
        num_predictions=(num_new, rows.height - num_new),
        looked_s=(now - began_at(rollout)).total_seconds(),
    )


def _rows(settings: Settings, rollout: Rollout, compared: Compared, now: datetime) -> pl.DataFrame:
    wanted = ("prediction_id", "model_version", "request", "score", "truth")
    plan = rollout.plan
    times = [
        pl.col(SERVED_AT).is_between(each.since + _SETTLING, each.until)
        for each in stretches(rollout, now)
    ]
    ours = (pl.col("model") == plan.model) & pl.col("model_version").is_in(
        [plan.from_version, plan.to_version]
    )
    try:
        known = predictions_with_truth(settings, compared.use_case, since=began_at(rollout))
    except NotFoundError:
        text, number = pl.String(), pl.Float64()
        kinds = (text, pl.Int64(), text, number, number)
        return pl.DataFrame(schema=dict(zip(wanted, kinds, strict=True)))
    return known.filter(ours & pl.any_horizontal(times)).select(wanted).collect()


def in_arms(rows: pl.DataFrame, rollout: Rollout, *, is_split_by_bool: bool) -> pl.DataFrame:
    """Find each prediction's unit and arm.

    A request goes by the value in its first row, so that value is the unit of all its rows. Rows
    of the old arm that the new version answered were asked of it by number, and are left out.

    Args:
        rows: prediction_id, model_version, request, score, truth.
        rollout: whose hash decides.
        is_split_by_bool: a replica hashes Python's word for the value, which is not JSON's.

    Returns:
        The same with unit and is_new, without request.
    """
    plan = rollout.plan
    about = rows.with_columns(
        pl.col("prediction_id").str.replace(r"-\d+$", "").alias("asked"),
        pl.col("prediction_id").str.ends_with("-0").alias("is_first"),
    )
    value = pl.col("request").str.json_path_match(json_path(plan.split_by))
    firsts = about.filter("is_first").select("asked", value.alias("unit"))
    units = firsts.select(pl.col("unit").unique()).drop_nulls()
    served = [unit.title() if is_split_by_bool else unit for unit in units["unit"]]
    num_buckets = round(plan.shares_percent[0] / 100 * NUM_BUCKETS)
    is_new = [bucket(rollout.id, unit) < num_buckets for unit in served]
    arms = units.with_columns(pl.Series("is_new", is_new, dtype=pl.Boolean))
    found = about.join(firsts, on="asked").join(arms, on="unit")
    asked_by_number = ~pl.col("is_new") & (pl.col("model_version") == plan.to_version)
    return found.filter(~asked_by_number).drop("asked", "is_first", "request")


class Looks:
    """Looks now and then, on a thread of its own: collecting takes longer than guards can wait."""

    def __init__(self, settings: Settings, rollout: Rollout) -> None:
        """Prepare; the first look begins with the first question.

        Raises:
            IntegrityError: a package is not the one that was registered.
        """
        self._settings = settings
        self._compared = Compared.of(settings, rollout)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="truths")
        self._under_way: Future[Evidence] | None = None
        self._began_s = self._next_s = 0.0
        self._ended_s: float | None = None
        self.problem: str | None = None
        """What the last look failed on; None: it did not."""

    def close(self) -> None:
        """Begin no other look."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, rollout: Rollout, held_s: float) -> Evidence | None:
        """Begin a look where one is due, and give what one has found that ended since.

        Args:
            rollout: as it stands.
            held_s: since the A/B began.
        """
        if self._under_way is None:
            over_s = rollout.plan.hold_s
            is_last = held_s >= over_s and not self.has_looked_since(over_s)
            if held_s >= self._next_s or is_last:
                self._began_s = held_s
                self._under_way = self._pool.submit(look, self._settings, rollout, self._compared)
            return None
        if not self._under_way.done():
            return None
        under_way, self._under_way = self._under_way, None
        self._ended_s = self._began_s
        self._next_s = next_look_s(self._began_s, held_s - self._began_s)
        try:
            evidence = under_way.result()
        except Exception as error:  # noqa: BLE001 - another look comes; guards are watched meanwhile
            self.problem = redact(str(error))
            return None
        self.problem = None
        return evidence

    def has_looked_since(self, moment_s: float) -> bool:
        """Whether a look has ended that began then or later."""
        return self._ended_s is not None and self._ended_s >= moment_s
