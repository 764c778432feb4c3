"""The option `--request-id`, the same for every command that runs as a job."""

import re
from typing import Annotated

import typer

from penstock.errors import UserError

_ALLOWED = re.compile(r"[A-Za-z0-9._:-]{1,100}")


def _check(request_id: str | None) -> str | None:
    """Refuse what the job would refuse later: MLflow's filters know no escape for a quote."""
    if request_id is not None and not _ALLOWED.fullmatch(request_id):
        raise UserError(
            f"{request_id!r} cannot be a request id",
            allowed="1 to 100 of the letters A to Z and a to z, digits, and . _ : -",
        )
    return request_id


RequestId = Annotated[
    str | None,
    typer.Option(
        "--request-id",
        callback=_check,
        help="Names this request: the same id again follows its job, or goes on where a lost one "
        "stopped.",
    ),
]
