"""The `penstock` command: one file per noun, errors turned into messages and exit codes."""

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from penstock.errors import PenstockError, storage_full

_ORDER = (
    "up", "init", "sample", "data", "features", "train", "tune", "results", "reproduce", "models",
    "signing-keys", "deploy", "rollout", "rollback", "api-keys", "predict", "explain", "feedback",
    "undeploy", "score", "cost", "audit", "status", "doctor", "down",
)  # fmt: skip


class _Journey(TyperGroup):
    """Lists the commands in the order of the journey; typer would put groups behind commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda n: _ORDER.index(n) if n in _ORDER else len(_ORDER))


app = typer.Typer(
    name="penstock",
    cls=_Journey,
    help="From raw events to a served, watched, renewed model, on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 our fault, 2 your input, 3 a gate said no, 75 busy: try again.",
)


@app.callback()
def options(
    address: Annotated[
        str | None,
        typer.Option(help="The dashboard of the Ray to use, instead of the one in the settings."),
    ] = None,
) -> None:
    """From raw events to a served, watched, renewed model, on Ray."""
    if address is not None:
        from penstock.settings import export_environment

        export_environment({"PENSTOCK_RAY__ADDRESS": address})


_MODULES = (
    "cluster", "init", "sample", "data", "features", "feature_study", "training_sets", "stream",
    "audit", "train", "tune", "reproduce", "models", "export", "signing_keys", "api_keys", "serve",
    "explain", "feedback", "score", "cost", "audit_log",
)  # fmt: skip
for _name in _MODULES:
    importlib.import_module(f"penstock.cli.{_name}").register(app)


def main() -> None:
    """Run the command line; end with the exit code of what happened."""
    as_json = "--json" in sys.argv
    try:
        app(standalone_mode=True)
    except PenstockError as error:
        _report(error, as_json=as_json)
        raise SystemExit(error.exit_code) from None
    except OSError as error:
        full = storage_full(error)
        if full is None:
            raise
        _report(full, as_json=as_json)
        raise SystemExit(full.exit_code) from None


def _report(error: PenstockError, *, as_json: bool) -> None:
    from penstock.logs import redact

    if as_json:
        import orjson

        parts = {
            "error": type(error).__name__,
            "found": redact(error.found),
            "allowed": error.allowed,
            "next_step": error.next_step,
            "exit_code": error.exit_code,
        }
        typer.echo(orjson.dumps(parts).decode(), err=True)
        return
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(redact(str(error)), err=True)
