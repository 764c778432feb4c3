"""`penstock api-keys`: who may ask the served models, and for what."""

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.serving.api_keys import ApiKey

api_keys = typer.Typer(
    help="API keys of the served models: create, list, revoke.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the commands of this noun."""
    app.add_typer(api_keys, name="api-keys")


@api_keys.command()
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is, or what for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="predict:MODEL, push:TABLE (* for all), feedback, read, admin; repeatable."
        ),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            help="The scopes of viewer, data_scientist, approver, operator or admin, as they are "
            "now; beside those of --scope."
        ),
    ] = None,
    days: Annotated[
        int | None, typer.Option(min=1, help="So long it opens; without it, until it is revoked.")
    ] = None,
    max_rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Requests a second at each replica; beyond it, 429."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a key and show it, once: only a hash of it is kept."""
    from datetime import timedelta

    from penstock.errors import unknown_name
    from penstock.roles import SCOPES
    from penstock.serving import api_keys as room
    from penstock.settings import load_settings

    settings = load_settings()
    by_role = {str(name): opened for name, opened in SCOPES.items()}
    if role is not None and role not in by_role:
        raise unknown_name("role", role, by_role)
    scopes = [*(by_role[role] if role else ()), *(scope or ())]
    valid_for = None if days is None else timedelta(days=days)
    key, token = room.create(
        settings, name, scopes, valid_for=valid_for, max_requests_per_s=max_rate
    )

    def render(console: "Console") -> None:
        console.print(token, soft_wrap=True, markup=False, highlight=False)
        until = f"until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else "until it is revoked"
        console.print(f"{key.name}, {', '.join(key.scopes)}, {until}.", highlight=False)
        console.print("Send it as `Authorization: Bearer …`. It is shown this once.")
        if not settings.serving.require_key:
            console.print(
                "Nobody is asked for a key yet: set serving.require_key and deploy.",
                style="yellow",
            )

    emit({**_shown(key), "token": token}, as_json=as_json, render=render)


@api_keys.command("list")
def list_keys(as_json: JsonFlag = False) -> None:
    """List every key that was ever made."""
    from datetime import UTC, datetime

    from penstock.serving import api_keys as room
    from penstock.settings import load_settings

    found = room.list_keys(load_settings())

    def render(console: "Console") -> None:
        from rich.table import Table

        if not found:
            console.print("No key yet: `penstock api-keys create NAME --scope predict:MODEL`.")
            return
        table = Table("id", "name", "scopes", "created", "expires", "state", box=None)
        for key in found:
            expires = f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never"
            state = key.state(datetime.now(UTC))
            created = f"{key.created:%Y-%m-%d %H:%M}"
            table.add_row(key.id, key.name, " ".join(key.scopes), created, expires, state)
        console.print(table)

    emit([_shown(key) for key in found], as_json=as_json, render=render)


@api_keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The part before the dot.")],
    as_json: JsonFlag = False,
) -> None:
    """Let a key open nothing any more; replicas know within a second."""
    from penstock.serving import api_keys as room
    from penstock.settings import load_settings

    key = room.revoke(load_settings(), key_id)
    emit(
        _shown(key),
        as_json=as_json,
        render=lambda console: console.print(f"{key.id} ({key.name}) is revoked", highlight=False),
    )


def _shown(key: "ApiKey") -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"sha256"})
