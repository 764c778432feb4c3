"""Compares this machine with a node of the cluster: what differs breaks work in odd ways."""

import platform
import time
import uuid
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from penstock.cluster import jobs
from penstock.records import Record
from penstock.settings import Settings

COMPARED_PACKAGES = (
    *("ray", "torch", "polars", "pyarrow", "deltalake", "feast", "mlflow"),
    *("onnxruntime", "xgboost", "scikit-learn", "pydantic"),
)
_MOST_CLOCK_SKEW_S = 2.0


class Check(Record):
    """One thing looked at; the next step is empty where all is well."""

    name: str
    ok: bool
    found: str
    next_step: str = ""


def installed_versions() -> dict[str, str]:
    """Name the version of each package whose difference between machines breaks work."""
    found = {}
    for name in COMPARED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


class Inspection(Record):
    """What one side sees: compared with the other side's."""

    python: str
    packages: dict[str, str]
    clock_s: float
    sees_probe: bool
    """The file that the doctor wrote into the storage is there, with the doctor's words."""


def inspect(settings: Settings, nonce: str) -> Inspection:
    """Look at the machine that this runs on."""
    probe = _probe(settings, nonce)
    return Inspection(
        python=platform.python_version(),
        packages=installed_versions(),
        clock_s=time.time(),
        sees_probe=probe.exists() and probe.read_text() == nonce,
    )


def _probe(settings: Settings, nonce: str) -> Path:
    return settings.storage_path / f".doctor-{nonce}"


def compare_with_cluster(settings: Settings) -> Iterator[Check]:
    """Look here, then there by a small job, and compare.

    Raises:
        PenstockError: the job failed.
    """
    nonce = uuid.uuid4().hex
    probe = _probe(settings, nonce)
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.write_text(nonce)
    try:
        here = inspect(settings, nonce)
        result = jobs.run_module(settings, "penstock.cluster.inspection", [nonce])
        yield from compare(here, Inspection.model_validate(result), answered_s=time.time())
    finally:
        probe.unlink(missing_ok=True)


def compare(here: Inspection, there: Inspection, *, answered_s: float) -> Iterator[Check]:
    """Compare the two sides.

    Args:
        here: this machine, looked at before the job.
        there: the cluster's side.
        answered_s: our clock when its answer was in. Its own clock was read at some moment
            between the two, so only what lies outside of them is skew.
    """
    same = here.python.rsplit(".", 1)[0] == there.python.rsplit(".", 1)[0]
    yield Check(
        name="cluster python",
        ok=same,
        found=f"{there.python} there, {here.python} here",
        next_step="" if same else "use the same minor version on both sides",
    )
    other = {
        name: number for name, number in there.packages.items() if here.packages.get(name) != number
    }
    different = [
        f"{name} {number} there, {here.packages.get(name, 'missing')} here"
        for name, number in other.items()
    ]
    yield Check(
        name="cluster packages",
        ok=not different,
        found="; ".join(different) or f"{len(here.packages)} compared, all the same",
        next_step="install both sides with -c constraints.txt" if different else "",
    )
    shared = there.sees_probe
    yield Check(
        name="shared storage",
        ok=shared,
        found=f"the cluster {'sees' if shared else 'does not see'} what we write",
        next_step="" if shared else "set storage.root to a folder that every node mounts",
    )
    skew_s = max(here.clock_s - there.clock_s, there.clock_s - answered_s, 0.0)
    ok = skew_s <= _MOST_CLOCK_SKEW_S
    yield Check(
        name="clock",
        ok=ok,
        found=f"at most {skew_s:.1f} s apart" if skew_s else "agrees with the cluster's",
        next_step="" if ok else "let both machines follow a time server (chrony, ntpd)",
    )
