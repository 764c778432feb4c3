"""`penstock audit`: who changed what stands, and whether that record is still what was written."""

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.audit import AuditRecord, Head

audit_app = typer.Typer(
    help="The audit log: every change of versions, deployments and keys.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the commands of this noun."""
    app.add_typer(audit_app, name="audit")


@audit_app.command()
def verify(
    head: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER:HASH", help="A head that was noted elsewhere; the log must hold it."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check that no record was changed, moved or taken out (exit code 1, naming the first)."""
    from penstock import audit
    from penstock.settings import load_settings

    expected = None if head is None else _parse(head)
    found = audit.verify(load_settings(), expected=expected)

    def render(console: "Console") -> None:
        console.print(
            f"{found.number:,} records, each as it was written; head {found}",
            highlight=False,
            soft_wrap=True,
        )

    emit(found, as_json=as_json, render=render)


@audit_app.command()
def show(
    last: Annotated[int, typer.Option(min=1, help="So many records, the newest.")] = 20,
    subject: Annotated[
        str | None, typer.Option(help="Only what is about this: a model, a version, a key.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the newest records: when, who, what."""
    from penstock import audit
    from penstock.settings import load_settings

    found = [
        record
        for record in audit.records(load_settings())
        if subject is None or f"{record.subject} ".startswith(f"{subject} ")
    ][-last:]
    emit(found, as_json=as_json, render=lambda console: _render(console, found))


def _parse(head: str) -> "Head":
    from penstock.audit import Head
    from penstock.errors import UserError

    number, _, digest = head.partition(":")
    if not number.isdigit() or len(digest) != 64:
        raise UserError(
            f"--head is {head!r}", allowed="NUMBER:HASH, as `penstock audit verify` prints it"
        )
    return Head(number=int(number), hash=digest)


def _render(console: "Console", found: "list[AuditRecord]") -> None:
    from rich.table import Table

    if not found:
        console.print("No record yet: registering, promoting and deploying write them.")
        return
    table = Table("", "when (UTC)", "who", "action", "subject", "facts", box=None)
    table.columns[-1].overflow = "fold"
    for record in found:
        facts = ", ".join(f"{name} {value}" for name, value in record.facts.items())
        when = f"{record.at:%Y-%m-%d %H:%M:%S}"
        row = (str(record.number), when, record.actor, record.action, record.subject, facts)
        table.add_row(*row)
    console.print(table)
