"""The `penstock` command: one file per noun, errors turned into messages and exit codes."""

import importlib
import sys

import typer

from penstock.errors import PenstockError

app = typer.Typer(
    name="penstock",
    help="From raw events to a served, watched, renewed model, on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 our fault, 2 your input, 3 a gate said no, 75 busy: try again.",
)

# The order is the order of the journey, and so that of `penstock --help`.
_MODULES = ("cluster", "init", "sample", "data", "features", "train", "models", "serve", "score")
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
