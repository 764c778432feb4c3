"""What is deployed, written down: one file a model, and the versions that a way back leads to."""

from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from penstock.files import write_whole
from penstock.records import Record
from penstock.settings import Settings

_MAX_EARLIER = 50


class Deployment(Record):
    """A model version that answers requests; the version is its left neighbour."""

    model: str
    version: int
    digest: str
    package_path: str
    code_path: str
    url: str
    predict_url: str
    example: str
    """A request body with one row of made-up values, to start from."""
    deployed_at: datetime
    earlier: tuple[int, ...] = ()
    """The versions that served before, the last one last: where `penstock rollback` leads."""


def deployment_path(settings: Settings, model: str) -> Path:
    """Where the deployment that stands is written down."""
    return settings.storage_path / "serving" / f"{model}.json"


def find_deployment(settings: Settings, model: str) -> Deployment | None:
    """Read the last deployment that came to answer; None where there is none."""
    try:
        return Deployment.model_validate_json(deployment_path(settings, model).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def record(settings: Settings, deployment: Deployment) -> None:
    """Write down that it answers."""
    content = deployment.model_dump_json(indent=2).encode()
    write_whole(deployment_path(settings, deployment.model), content)


def line(before: Deployment | None, version: int, *, is_way_back: bool = False) -> tuple[int, ...]:
    """Give the versions behind a new deployment, the last one last.

    A way back takes what it leaves off the line: the next one leads further back, not forth again.
    """
    if before is None:
        return ()
    earlier = list(before.earlier)
    if is_way_back:
        while earlier and earlier.pop() != version:
            pass
    elif version != before.version:
        earlier.append(before.version)
    return tuple(earlier[-_MAX_EARLIER:])
