"""`penstock features profile` and `select`: know the features before a model is made of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.features import UseCase, features_app
from penstock.cli.output import JsonFlag, emit, stderr

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.features.profile import TableProfile

_BLOCKS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 16


def register(_app: typer.Typer) -> None:
    """Add the commands to `features`."""
    features_app.command("profile")(profile)
    features_app.command("select")(select)


def profile(
    use_case: UseCase,
    table: Annotated[
        str | None,
        typer.Option(help="One table, <use case>.<name>; every feature table by default."),
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="A version of it; the newest by default.")
    ] = None,
    against: Annotated[
        int | None, typer.Option(help="An older version to hold it against: what has moved?")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write a page of plots too: one HTML file.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Profile feature tables: counts, missing values, quantiles, histograms; and what moved.

    The statistics that every version keeps are read; histograms take one pass, which is kept too.
    """
    from penstock.cluster.display import Display
    from penstock.cluster.markers import ProgressMarker
    from penstock.features.profile import profile as profile_table
    from penstock.features.profile import tables_to_profile
    from penstock.features.profile_page import page
    from penstock.files import write_whole
    from penstock.settings import load_settings

    settings = load_settings()
    one_version = version is not None or against is not None
    names = tables_to_profile(settings, use_case, table, one_version=one_version)
    with Display(stderr(), title="profile") as display:

        def progress(step: str, done: int, total: int | None = None, *, unit: str = "rows") -> None:
            display.show(ProgressMarker(step=step, done=done, total=total, unit=unit))

        found = [
            profile_table(settings, name, version=version, against=against, progress=progress)
            for name in names
        ]
    if out is not None:
        write_whole(out, page(found).encode())

    def render(console: "Console") -> None:
        for described in found:
            _render_profile(console, described)
        if out is not None:
            console.print(f"written: {out}", highlight=False, soft_wrap=True)

    emit(found, as_json=as_json, render=render)


def select(
    use_case: UseCase,
    folds: Annotated[int, typer.Option(min=2, help="How many folds of time.")] = 5,
    top: Annotated[int | None, typer.Option(min=1, help="Keep at most so many features.")] = None,
    service: Annotated[
        str | None,
        typer.Option(help="The service with the candidates; the model's own by default."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides every draw.")] = 0,
    write: Annotated[
        Path | None,
        typer.Option(help="Write the suggested service here, as Python; outside the feature repo."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Rank the model's features over folds of time before its test, and suggest a service.

    Nothing that is declared changes. A Ray job; the folds run side by side.
    """
    from penstock.cluster.jobs import run_job
    from penstock.features.declarations import load_feature_objects
    from penstock.features.suggested_service import check_target
    from penstock.files import write_whole
    from penstock.settings import load_settings
    from penstock.training.declarations import load_model

    settings = load_settings()
    # What is wrong with the question is told before a job is started for it.
    model = load_model(settings, use_case)
    load_feature_objects(settings, use_case).service(service or model.feature_service)
    if write is not None:
        check_target(settings, write)
    arguments = [use_case, "--folds", str(folds), "--seed", str(seed)]
    if top is not None:
        arguments += ["--top", str(top)]
    if service is not None:
        arguments += ["--service", service]
    found = run_job(settings, "select_features", arguments)
    if write is not None:
        write_whole(write, found["suggestion"].encode())

    def render(console: "Console") -> None:
        _render_selection(console, found)
        if write is not None:
            console.print(f"written: {write}", highlight=False, soft_wrap=True)

    emit(found, as_json=as_json, render=render)


def _render_selection(console: "Console", found: Mapping[str, Any]) -> None:
    from rich.table import Table

    grid = Table(box=None, header_style="bold")
    grid.add_column("feature", overflow="fold", min_width=20)
    for heading in ("importance", "low", "high", "beats noise", "information", "low", "high"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)
    num_folds = len(found["folds"])
    for feature in found["features"]:
        measured, told = feature["importance"], feature["mutual_information"]
        grid.add_row(
            feature["name"],
            *(f"{measured[part]:.4f}" if measured else "" for part in ("mean", "low", "high")),
            f"{feature['num_folds_above_noise']} of {num_folds}" if measured else "",
            *(f"{told[part]:.4f}" for part in ("mean", "low", "high")),
            "kept" if feature["is_kept"] else "redundant" if feature["redundant_with"] else "",
        )
    console.print(grid)
    noise = found["noise"]
    console.print(
        f"importance: by how much {found['metric']} worsens when the feature is shuffled; noise "
        f"reaches {noise['mean']:.4f} ({noise['low']:.4f} to {noise['high']:.4f})",
        highlight=False,
        soft_wrap=True,
    )
    for pair in found["redundant_pairs"]:
        console.print(
            f"alike: {pair['first']} and {pair['second']}, rank correlation "
            f"{pair['rank_correlation']:.3f}",
            highlight=False,
            soft_wrap=True,
        )
    for feature in found["features"]:
        if feature["gain"]:
            gain = feature["gain"]
            says = "redundant" if feature["redundant_with"] else "stays"
            console.print(
                f"{feature['name']} {says}: it adds {gain['mean']:.4f} ({gain['low']:.4f} to "
                f"{gain['high']:.4f})",
                highlight=False,
                soft_wrap=True,
            )
    first, last = found["folds"][0]["train_start"][:10], found["folds"][-1]["test_end"][:10]
    console.print(
        f"{num_folds} {found['kind_of_folds']} folds from {first} to {last}", highlight=False
    )
    for which in ("all", "kept"):
        values = ", ".join(f"{fold[f'metric_of_{which}']:.3f}" for fold in found["folds"])
        console.print(f"{found['metric']} of {which} features: {values}", highlight=False)
    for reason in found["folds_left_out"]:
        console.print(f"left out: {reason}", markup=False, soft_wrap=True)
    num_kept = sum(feature["is_kept"] for feature in found["features"])
    console.print(f"{num_kept} of {len(found['features'])} kept. {found['rule']}", soft_wrap=True)


def _render_profile(console: "Console", found: "TableProfile") -> None:
    from rich.table import Table

    from penstock.features.profile_page import short

    at = found.table
    console.print(f"{at.table} version {at.version}: {at.num_rows:,} rows", highlight=False)
    grid = Table(box=None, header_style="bold", padding=(0, 1))
    grid.add_column("column", overflow="fold", min_width=20)
    for heading in ("missing", "distinct", "min", "median", "mean", "max"):
        grid.add_column(heading, justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)
    for column in found.columns:
        held = column.statistics
        mean = None if held.dtype.startswith("Date") else column.spread.mean
        grid.add_row(
            _plain(column.name),
            f"{column.missing_share:.1%}" if column.missing_share else "0",
            f"{'' if held.distinct_is_exact else '~'}{held.distinct:,}",
            *(_plain(short(v)) for v in (held.min, held.quantiles.get("0.5"), mean, held.max)),
            sparkline(column.spread.counts),
        )
    console.print(grid)
    if found.against is None:
        return
    console.print(f"\nagainst version {found.against.version}: {found.against.num_rows:,} rows")
    for what, names in (("new", found.columns_added), ("gone", found.columns_gone)):
        if names:
            console.print(f"{what}: {', '.join(names)}", markup=False, soft_wrap=True)
    if not found.moved:
        console.print("nothing moved")
        return
    grid = Table(box=None, header_style="bold")
    grid.add_column("moved", overflow="fold", min_width=20)
    for heading in ("by", "missing before", "now", "median before", "now", "mean before", "now"):
        grid.add_column(heading, justify="right")
    for column in found.moved:
        before, spread = column.statistics_before, column.spread_before
        grid.add_row(
            _plain(column.name),
            "-" if column.shift is None else f"{column.shift:.2f}",
            f"{column.missing_share_before:.1%}",
            f"{column.missing_share:.1%}",
            _plain(short(before.quantiles.get("0.5") if before else None)),
            _plain(short(column.statistics.quantiles.get("0.5"))),
            short(spread.mean if spread else None),
            short(column.spread.mean),
        )
    console.print(grid)


def sparkline(counts: "tuple[int, ...]") -> str:
    """Draw counts as a line of blocks, neighbours in one block where there are more than fit."""
    if not any(counts):
        return ""
    per_block = -(-len(counts) // _SPARK_WIDTH)
    blocks = [counts[at : at + per_block] for at in range(0, len(counts), per_block)]
    # Means, because the last block may have fewer bins than the others.
    means = [sum(block) / len(block) for block in blocks]
    # What is there at all is seen: a block of its own, however few they are.
    return "".join(
        _BLOCKS[min(int(mean / max(means) * len(_BLOCKS)), len(_BLOCKS) - 1)] if mean else " "
        for mean in means
    )


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
