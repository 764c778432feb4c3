"""Deploy a model, ask it, and take it down again."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from penstock.cli.output import JsonFlag, emit, stderr

if TYPE_CHECKING:
    from penstock.settings import Settings

UseCase = Annotated[str, typer.Argument(help="The use case, a folder of the feature repo.")]


def register(app: typer.Typer) -> None:
    """Add `deploy`, `undeploy` and `predict`."""
    app.command()(deploy)
    app.command()(undeploy)
    app.command()(predict)


def deploy(
    use_case: UseCase,
    version: Annotated[
        int | None, typer.Option(help="The model version; without it, the champion.", min=1)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Serve a model version; the one before answers until the new one does."""
    from penstock.registry.versions import resolve
    from penstock.serving.deploy import Deployment
    from penstock.serving.deploy import deploy as deploy_version
    from penstock.settings import load_settings
    from penstock.training.declarations import load_model

    settings = load_settings()
    if settings.ray.address is None:
        wanted = resolve(settings, load_model(settings, use_case).name, version)
        with stderr().status("") as status:
            deployment = deploy_version(settings, wanted, report=lambda what: status.update(what))
    else:
        deployment = Deployment.model_validate(_as_job(settings, use_case, version=version))

    def render(out: Console) -> None:
        out.print(f"{deployment.model} version {deployment.version} answers at")
        out.print(deployment.predict_url, soft_wrap=True)
        out.print("\nTry it:")
        # Copied into a shell, so it must not be wrapped or read as markup.
        out.print(
            f"curl -sS {deployment.predict_url} -H 'Content-Type: application/json' "
            f"-d '{deployment.example}'",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )

    emit(deployment, as_json=as_json, render=render)


def undeploy(use_case: UseCase, as_json: JsonFlag = False) -> None:
    """Stop serving a use case's model."""
    from penstock.serving.deploy import undeploy as undeploy_model
    from penstock.settings import load_settings
    from penstock.training.declarations import load_model

    settings = load_settings()
    model = load_model(settings, use_case).name
    if settings.ray.address is None:
        served = undeploy_model(settings, model)
    else:
        served = bool(_as_job(settings, use_case, remove=True)["was_served"])
    emit(
        {"model": model, "was_served": served},
        as_json=as_json,
        render=lambda out: out.print(
            f"{model} is no longer served" if served else f"{model} was not served"
        ),
    )


def _as_job(
    settings: "Settings", use_case: str, *, version: int | None = None, remove: bool = False
) -> dict[str, Any]:
    """Deploy on another Ray: its controller is reached from inside its network only."""
    from penstock.cluster.jobs import run_job

    options = [] if version is None else ["--version", str(version)]
    arguments = [use_case, *options, *(["--remove"] if remove else [])]
    # It asks Serve's ingress, which listens on the head's loopback.
    return run_job(settings, "deploy", arguments, is_heavy=False)


def predict(
    use_case: UseCase,
    rows: Annotated[
        str,
        typer.Argument(
            help="One row as a JSON object, an array of rows, or a whole request; - reads stdin."
        ),
    ],
    version: Annotated[
        int | None, typer.Option(help="Insist on this model version.", min=1)
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Ask the deployed model for scores."""
    from penstock.serving import server
    from penstock.serving.api_keys import own_token
    from penstock.serving.client import predict as ask
    from penstock.settings import load_settings
    from penstock.training.declarations import load_model

    settings = load_settings()
    text = typer.get_text_stream("stdin").read() if rows == "-" else rows
    model = load_model(settings, use_case).name
    token = own_token(settings)
    answer = ask(server.url(settings), model, text, version=version, token=token)
    emit(answer, as_json=as_json, render=lambda out: _render_answer(out, answer))


def _render_answer(out: Console, answer: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=f"{answer['model']} version {answer['version']}")
    for column in ("score", "label", "missing features", "prediction"):
        table.add_column(column, justify="right" if column in ("score", "label") else "left")
    for prediction in answer["predictions"]:
        table.add_row(
            f"{prediction['score']:.6f}",
            str(prediction.get("label", "")),
            ", ".join(prediction["missing"]) or "none",
            prediction["prediction_id"],
        )
    out.print(table)
