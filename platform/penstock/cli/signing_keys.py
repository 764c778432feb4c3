"""`penstock signing-keys`: whose model versions are loaded, and which key signs new ones."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.registry.key_ring import RingKey

signing_keys = typer.Typer(
    help="Signing keys: list, rotate, trust another installation's, trust no more.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the commands of this noun."""
    app.add_typer(signing_keys, name="signing-keys")


@signing_keys.command("list")
def list_keys(as_json: JsonFlag = False) -> None:
    """List the trusted keys, and what each has sealed."""
    from penstock.registry import key_ring
    from penstock.settings import load_settings

    found = key_ring.list_keys(load_settings())

    def render(console: "Console") -> None:
        if not found:
            console.print("No key yet: the first registration makes one.")
        for key in found:
            _tell(console, key, "signs" if key.signs else "is trusted")

    emit(found, as_json=as_json, render=render)


@signing_keys.command()
def rotate(as_json: JsonFlag = False) -> None:
    """Sign with a new key from now on; versions that the old one sealed are loaded as before."""
    from penstock.registry import key_ring
    from penstock.settings import load_settings

    key = key_ring.rotate(load_settings())
    emit(key, as_json=as_json, render=lambda console: _tell(console, key, "signs from now on"))


@signing_keys.command()
def trust(
    file: Annotated[Path, typer.Argument(help="The .pub file of another installation's key.")],
    as_json: JsonFlag = False,
) -> None:
    """Load another installation's packages from now on."""
    from penstock.registry import key_ring
    from penstock.settings import load_settings

    key = key_ring.trust(load_settings(), file)
    emit(key, as_json=as_json, render=lambda console: _tell(console, key, "is trusted"))


@signing_keys.command()
def distrust(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="The key's id.")],
    even_in_use: Annotated[
        bool, typer.Option("--even-in-use", help="Although versions that it sealed are lost then.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Load nothing any more that the key has sealed (exit code 3 if versions hang on it)."""
    from penstock.registry import key_ring
    from penstock.settings import load_settings

    key = key_ring.distrust(load_settings(), key_id, even_in_use=even_in_use)
    emit(key, as_json=as_json, render=lambda console: _tell(console, key, "is trusted no more"))


def _tell(console: "Console", key: "RingKey", what: str) -> None:
    sealed = f"; it sealed {', '.join(key.versions)}" if key.versions else ""
    console.print(f"{key.key_id} {what}{sealed}", highlight=False, soft_wrap=True)
