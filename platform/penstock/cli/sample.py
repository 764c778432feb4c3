"""`penstock sample`: raw data from a use case's own simulator, for those who have none."""

from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.output import JsonFlag, emit, stderr


def register(app: typer.Typer) -> None:
    """Add `sample`."""
    app.command()(sample)


def sample(
    use_case: Annotated[str, typer.Argument(help="The use case whose simulator runs.")],
    out: Annotated[Path, typer.Option(help="The folder to write to; made when absent.")],
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same data.")] = 0,
    days: Annotated[int, typer.Option(min=1, help="How many days to simulate.")] = 183,
    customers: Annotated[int, typer.Option(min=1, help="How many customers there are.")] = 5000,
    terminals: Annotated[int, typer.Option(min=1, help="How many terminals there are.")] = 10000,
    as_json: JsonFlag = False,
) -> None:
    """Write simulated raw data of a use case as Parquet files, one a month."""
    from penstock.settings import load_settings
    from penstock.use_cases import import_declarations

    simulator = import_declarations(load_settings(), use_case, "simulator")
    with stderr().status("simulating …") as status:

        def progress(step: str, done: int, total: int | None = None, *, unit: str = "rows") -> None:
            of = f" of {total:,}" if total is not None else ""
            status.update(f"{step}: {done:,}{of} {unit}")

        files = simulator.simulate(
            out,
            seed=seed,
            num_customers=customers,
            num_terminals=terminals,
            num_days=days,
            progress=progress,
        )
    names = [str(path) for path in files]
    emit(
        {"use_case": use_case, "seed": seed, "files": names},
        as_json=as_json,
        render=lambda console: console.print("\n".join(names), highlight=False, soft_wrap=True),
    )
