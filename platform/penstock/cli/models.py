"""`penstock models`: what is registered, which version is champion, moving it there and back.

Each command loads the settings before it imports the registry: that keeps MLflow from calling home.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from penstock.registry.package import VerifiedPackage
    from penstock.registry.promotion import Comparison
    from penstock.registry.versions import ModelRegistry, ModelVersion, Move
    from penstock.settings import Settings

models = typer.Typer(
    help="Model versions: list, compare, promote, roll back, verify, describe.",
    no_args_is_help=True,
)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")]
_ALIAS_STYLES = {"champion": "bold green", "challenger": "yellow", "previous_champion": "dim"}


def register(app: typer.Typer) -> None:
    """Add the commands of this noun."""
    app.add_typer(models, name="models")


@models.command("list")
def list_models(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only the versions of this model.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List model versions, with their aliases and metrics."""
    from penstock.settings import load_settings

    settings = load_settings()
    from penstock.registry.versions import list_versions

    found = list_versions(settings, name)

    def render(console: Console) -> None:
        if not found:
            console.print("No model version yet: `penstock train USE_CASE` registers one.")
            return
        console.print(_versions_table(found, _compared_metrics(settings, found)))

    emit(found, as_json=as_json, render=render)


@models.command()
def show(
    name: _Name,
    version: Annotated[
        int | None, typer.Argument(min=1, help="The version; without it, the champion.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show one version, the champion's moves, and the model card."""
    from penstock.settings import load_settings

    settings = load_settings()
    from penstock.registry.package import CARD_FILE

    registry, found, package = verified(settings, name, version)
    moves = registry.moves(name)
    card = package.files[CARD_FILE].decode()
    result = {
        **found.model_dump(mode="json"),
        "signature": package.signature.model_dump(mode="json"),
        "training": package.training,
        "moves": [move.model_dump(mode="json") for move in moves],
        "card": card,
    }

    def render(console: Console) -> None:
        from rich.markdown import Markdown

        console.print(_versions_table([found], _compared_metrics(settings, [found])))
        console.print(f"run {found.run_id}", f"folder {found.path}", sep="\n", soft_wrap=True)
        console.print(f"digest {found.digest}", soft_wrap=True)
        if moves:
            console.print(_moves_table(moves))
        console.print(Markdown(card))

    emit(result, as_json=as_json, render=render)


@models.command()
def compare(
    name: _Name,
    version: Annotated[
        int | None,
        typer.Argument(min=1, help="The version to compare; without it, the challenger."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Hold a version against the champion, and say what the gate would decide."""
    from penstock.settings import load_settings

    settings = load_settings()
    from penstock.registry.promotion import compare as compare_versions

    comparison = compare_versions(settings, name, version)
    emit(comparison, as_json=as_json, render=lambda console: _render(comparison, console))


@models.command()
def promote(
    name: _Name,
    version: Annotated[
        int | None,
        typer.Argument(min=1, help="The version to promote; without it, the challenger."),
    ] = None,
    expect: Annotated[
        int | None,
        typer.Option(help="Promote only while this version is champion; 0: while there is none."),
    ] = None,
    force: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Promote against the gate; the journal keeps why."),
    ] = None,
    downgrade: Annotated[
        bool, typer.Option("--downgrade", help="Although the version is older than the champion.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make a version the champion, if the gate lets it (else exit code 3)."""
    from penstock.errors import UserError
    from penstock.settings import load_settings

    if force is not None and not force.strip():
        raise UserError("--force needs a reason", next_step="say why, in a few words")
    settings = load_settings()
    from penstock.registry.promotion import promote as promote_version
    from penstock.registry.versions import CHALLENGER, CHAMPION, ModelRegistry

    registry = ModelRegistry(settings)
    now = registry.aliases(name).get(CHAMPION)
    expected = now if expect is None else expect or None
    number = registry.resolve(name, version or CHALLENGER).version
    move = promote_version(
        settings, name, number, expected=expected, force_reason=force, downgrade=downgrade
    )
    emit(move, as_json=as_json, render=lambda console: _tell(name, move, console))


@models.command()
def approve(
    name: _Name,
    version: Annotated[
        int | None, typer.Argument(min=1, help="The version; without it, the challenger.")
    ] = None,
    reason: Annotated[str, typer.Option(help="What you looked at.")] = "by hand",
    as_json: JsonFlag = False,
) -> None:
    """Agree to a version as champion: where the gate asks for it, somebody else must promote it."""
    from penstock.settings import load_settings

    settings = load_settings()
    from penstock.registry.approval import approve as approve_version
    from penstock.registry.versions import CHALLENGER, ModelRegistry

    number = ModelRegistry(settings).resolve(name, version or CHALLENGER).version
    approval = approve_version(settings, name, number, reason=reason)
    emit(
        approval,
        as_json=as_json,
        render=lambda console: console.print(
            f"{name}: version {number} is approved by {approval.actor}", highlight=False
        ),
    )


@models.command()
def rollback(
    name: _Name,
    expect: Annotated[
        int | None, typer.Option(help="Go back only while this version is the champion.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why; the journal keeps it.")] = "by hand",
    as_json: JsonFlag = False,
) -> None:
    """Make the champion before this one the champion again; repeat it to go further back."""
    from penstock.settings import load_settings

    settings = load_settings()
    from penstock.registry.promotion import rollback as roll_back
    from penstock.registry.versions import CHAMPION, ModelRegistry

    expected = ModelRegistry(settings).aliases(name).get(CHAMPION) if expect is None else expect
    move = roll_back(settings, name, expected=expected, reason=reason)
    emit(move, as_json=as_json, render=lambda console: _tell(name, move, console))


@models.command()
def verify(
    name: _Name,
    version: Annotated[
        int | None,
        typer.Argument(min=1, help="The version; without it, every version of the model."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check every byte of a version against its signed manifest (exit code 1 when one differs)."""
    from penstock.settings import load_settings

    settings = load_settings()
    from penstock.registry.package import verify as verify_package
    from penstock.registry.versions import ModelRegistry

    registry = ModelRegistry(settings)
    chosen = registry.versions(name) if version is None else [registry.resolve(name, version)]
    checked: list[dict[str, Any]] = []
    for item in chosen:
        folder = registry.folder(name, item.version)
        package = verify_package(folder, settings, digest=item.digest)
        checked.append(
            {
                "name": name,
                "version": item.version,
                "digest": package.digest,
                "key_id": package.manifest.key_id,
                "num_files": len(package.files),
                "num_bytes": sum(map(len, package.files.values())),
            }
        )

    def render(console: Console) -> None:
        for item in checked:
            console.print(
                f"{name} version {item['version']}: {item['num_files']} files, "
                f"{item['num_bytes']:,} bytes, signed by {item['key_id']}: intact",
                highlight=False,
                soft_wrap=True,
            )

    emit(checked, as_json=as_json, render=render)


@models.command()
def card(
    name: _Name,
    version: Annotated[
        int | None, typer.Option(min=1, help="The version; without it, the champion.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="The folder to write to; made when it is not there.")
    ] = Path(),
    as_json: JsonFlag = False,
) -> None:
    """Write a version's model card, as Markdown and as one HTML file, from its signed files."""
    from penstock.settings import load_settings

    settings = load_settings()
    from penstock.registry.card_page import write_card

    registry, found, package = verified(settings, name, version)
    moves = [move for move in registry.moves(name) if found.version == move.to_version]
    standing = [
        f"aliases: {', '.join(found.aliases) or 'none'}",
        *(f"{move.at:%Y-%m-%d %H:%M} UTC, {move.kind}: {move.reason}" for move in moves),
    ]
    files = [str(file) for file in write_card(package, out, standing=standing)]

    def render(console: Console) -> None:
        for file in files:
            console.print(file, highlight=False, soft_wrap=True)

    emit({"name": name, "version": found.version, "files": files}, as_json=as_json, render=render)


def verified(
    settings: "Settings", name: str, version: int | None
) -> "tuple[ModelRegistry, ModelVersion, VerifiedPackage]":
    """Find a version, None being the champion, and read its package, every byte of it checked."""
    from penstock.registry.package import verify as verify_package
    from penstock.registry.versions import ModelRegistry

    registry = ModelRegistry(settings)
    found = registry.resolve(name, version)
    package = verify_package(registry.folder(name, found.version), settings, digest=found.digest)
    return registry, found, package


def _compared_metrics(settings: "Settings", found: "list[ModelVersion]") -> list[str]:
    """The metrics that the gates of these models compare; `show` has all of them."""
    from penstock.errors import UserError
    from penstock.training.declarations import load_model

    names: list[str] = []
    for use_case in dict.fromkeys(item.facts.use_case for item in found):
        # A version outlives its declaration; the list must not fail for it.
        with contextlib.suppress(UserError):
            names.append(load_model(settings, use_case).gate.metric)
    return list(dict.fromkeys(names))


def _versions_table(found: "list[ModelVersion]", metrics: list[str]) -> Any:
    from rich.table import Table

    table = Table()
    for column in ("model", "version", "alias", "estimator", "created"):
        table.add_column(column)
    for column in metrics:
        table.add_column(column, justify="right")
    for item in found:
        table.add_row(
            item.name,
            str(item.version),
            " ".join(f"[{_ALIAS_STYLES.get(a, 'none')}]{a}[/]" for a in item.aliases),
            item.facts.estimator,
            f"{item.created:%Y-%m-%d %H:%M}",
            *(f"{item.metrics[n]:.4f}" if n in item.metrics else "" for n in metrics),
        )
    return table


def _moves_table(moves: "list[Move]") -> Any:
    from rich.table import Table

    table = Table(title="moves of the champion", title_justify="left")
    for column in ("", "when", "move", "from", "to", "reason"):
        table.add_column(column)
    for move in moves:
        table.add_row(
            str(move.number),
            f"{move.at:%Y-%m-%d %H:%M:%S}",
            f"{move.kind} (forced)" if move.forced else move.kind,
            str(move.from_version or "-"),
            str(move.to_version),
            move.reason,
        )
    return table


def _render(comparison: "Comparison", console: Console) -> None:
    from rich.table import Table

    champion, challenger = comparison.champion, comparison.challenger
    table = Table()
    table.add_column("metric")
    table.add_column(f"champion {champion.version}" if champion else "no champion", justify="right")
    table.add_column(f"version {challenger.version}", justify="right")
    table.add_column("difference", justify="right")
    for name, new in sorted(challenger.metrics.items()):
        old = champion.metrics.get(name) if champion else None
        table.add_row(
            name,
            "" if old is None else f"{old:.4f}",
            f"{new:.4f}",
            "" if old is None else f"{new - old:+.4f}",
        )
    console.print(table)
    if not comparison.same_training_set:
        console.print("The two were trained and measured on different data.", style="yellow")
    word = "[green]the gate says yes[/]" if comparison.decision.passed else "[red]it says no[/]"
    console.print(f"{word}: {comparison.decision.reason}", highlight=False, soft_wrap=True)


def _tell(name: str, move: "Move", console: Console) -> None:
    before = f"was version {move.from_version}" if move.from_version else "the first one"
    console.print(
        f"{name}: version {move.to_version} is champion ({before}). {move.reason}",
        highlight=False,
        soft_wrap=True,
    )
