"""What a command prints: its result on stdout, everything else on stderr."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer
from rich.console import Console

if TYPE_CHECKING:
    # Loading pydantic takes longer than all of `--help`.
    from penstock.records import Record

JsonFlag = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON document on stdout.")
]

_WIDTH_OF_NO_TERMINAL = 120

Result: TypeAlias = "Record | Mapping[str, Any] | Sequence[Record] | Sequence[Mapping[str, Any]]"


def plain(result: Result) -> Any:
    """Turn records into what JSON can hold."""
    from penstock.records import Record

    if isinstance(result, Record):
        return result.model_dump(mode="json")
    if isinstance(result, Mapping):
        return {k: plain(v) if isinstance(v, Record) else v for k, v in result.items()}
    return [plain(item) for item in result]


def emit(result: Result, *, as_json: bool, render: Callable[[Console], None] | None = None) -> None:
    """Print a command's result: JSON for machines, `render` (or indented JSON) for people."""
    if as_json or render is None:
        import orjson

        option = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
        typer.echo(orjson.dumps(plain(result), option=option).decode())
        return
    render(stdout())


def stdout() -> Console:
    """Give the console for results; a pipe or a file has no width of its own."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH_OF_NO_TERMINAL)


def stderr() -> Console:
    """Give the console for progress and remarks."""
    return Console(stderr=True)
