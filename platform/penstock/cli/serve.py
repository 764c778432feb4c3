"""Deploy a model, ask it, and take it down again."""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from penstock.cli.output import JsonFlag, emit, stderr
from penstock.errors import UserError

if TYPE_CHECKING:
    from penstock.serving.deployments import Deployment
    from penstock.serving.rollout import RolloutPlan
    from penstock.settings import Settings

UseCase = Annotated[str, typer.Argument(help="The use case, a folder of the feature repo.")]


def register(app: typer.Typer) -> None:
    """Add `deploy`, `rollout`, `rollback`, `undeploy` and `predict`."""
    app.command()(deploy)
    app.command()(rollout)
    app.command()(rollback)
    app.command()(undeploy)
    app.command()(predict)


def deploy(
    use_case: UseCase,
    version: Annotated[
        int | None, typer.Option(help="The model version; without it, the champion.", min=1)
    ] = None,
    canary: Annotated[
        str | None,
        typer.Option(
            help="Shift the traffic in shares (percent of `--split-by`), such as 5,25,50,100.",
            metavar="SHARES",
        ),
    ] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Score beside the old version; answer nobody.")
    ] = False,
    ab: Annotated[
        float | None,
        typer.Option(
            help="Compare both versions by `--outcome`, with this share (percent) for the new one, "
            "until one is better.",
            metavar="SHARE",
        ),
    ] = None,
    outcome: Annotated[
        str | None,
        typer.Option(
            help="What decides an A/B, of predictions with their truth: log_loss, brier, accuracy; "
            "absolute_error, squared_error; truth (more is better), less_truth.",
        ),
    ] = None,
    max_hold: Annotated[
        str | None, typer.Option(help="An A/B that is undecided by then goes back [14d].")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="How often an A/B may find a difference where there is none [0.05]."),
    ] = None,
    hold: Annotated[
        str | None, typer.Option(help="How long each share stays: 90s, 5m, 1h30m [5m].")
    ] = None,
    guard: Annotated[
        list[str] | None,
        typer.Option(
            help="What takes the version back: p99_ms<50,error_rate<0.001. Measures: error_rate "
            "(default: <0.01), p50_ms, p99_ms, missing_rate, score_shift; of a shadow "
            "score_difference and flip_rate too.",
        ),
    ] = None,
    split_by: Annotated[
        str | None,
        typer.Option(help="The field of a request whose value stays with its version [the first]."),
    ] = None,
    min_answers: Annotated[
        int | None,
        typer.Option(help="A share stays until the version has so many answers [1].", min=0),
    ] = None,
    answer_within_ms: Annotated[
        float | None,
        typer.Option(help="After that the old version answers, and it counts as failed [250]."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print the plan and stop.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Serve a model version; the one before answers until the new one does.

    With --canary, --shadow or --ab both versions stand in every replica, and guards are watched.
    """
    from penstock.registry.versions import resolve
    from penstock.settings import load_settings
    from penstock.training.declarations import load_model

    settings = load_settings()
    of_a_rollout = (plan or None, guard, split_by, answer_within_ms)
    of_shares = (hold, min_answers)
    of_an_ab = (outcome, max_hold, alpha)
    if canary is None and not shadow and ab is None:
        if any(option is not None for option in of_a_rollout + of_shares + of_an_ab):
            raise UserError(
                "--plan, --hold, --guard, --split-by, --min-answers, --answer-within-ms, "
                "--outcome, --max-hold and --alpha are of a rollout",
                next_step="say --canary 5,25,50,100, --shadow or --ab 50 as well",
            )
        _deploy_outright(settings, use_case, version, as_json=as_json)
        return
    if ab is not None:
        _refuse(of_shares, "--hold and --min-answers are of --canary and --shadow", "--max-hold")
        if outcome is None:
            from penstock.serving.outcomes import OUTCOMES

            raise UserError(
                "an A/B is decided by an outcome",
                allowed=", ".join(OUTCOMES),
                next_step="say which with --outcome",
            )
        if canary is not None or shadow:
            raise UserError("--ab is a rollout of its own", next_step="leave --canary or --shadow")
    else:
        _refuse(of_an_ab, "--outcome, --max-hold and --alpha are of --ab", "--ab 50")
    from penstock.durations import parse_duration
    from penstock.serving.rolling import plan_rollout
    from penstock.serving.rollout import parse_guards, parse_shares

    shares = (ab,) if ab is not None else () if canary is None else parse_shares(canary)
    made = plan_rollout(
        settings,
        resolve(settings, load_model(settings, use_case).name, version),
        mode="ab" if ab is not None else "shadow" if shadow else "canary",
        shares_percent=shares,
        hold_s=parse_duration(hold or "5m") if ab is None else parse_duration(max_hold or "14d"),
        guards=parse_guards(guard or []),
        split_by=split_by,
        min_answers=min_answers,
        answer_within_ms=answer_within_ms,
        outcome=outcome,
        alpha=alpha,
    )
    if plan:
        emit(made, as_json=as_json, render=lambda out: _render_plan(out, made))
        return
    if not as_json:
        _render_plan(stderr(), made)
    _roll_out(settings, use_case, made, as_json=as_json)


def _refuse(options: tuple[object, ...], found: str, instead: str) -> None:
    if any(option is not None for option in options):
        raise UserError(found, next_step=f"leave it out, or say {instead}")


def _deploy_outright(
    settings: "Settings", use_case: str, version: int | None, *, as_json: bool
) -> None:
    from penstock.registry.versions import resolve
    from penstock.serving.deploy import Deployment
    from penstock.serving.deploy import deploy as deploy_version
    from penstock.training.declarations import load_model

    if settings.ray.address is None:
        wanted = resolve(settings, load_model(settings, use_case).name, version)
        with stderr().status("") as status:
            deployment = deploy_version(settings, wanted, report=lambda what: status.update(what))
    else:
        options = [] if version is None else ["--version", str(version)]
        deployment = Deployment.model_validate(_as_job(settings, use_case, *options))
    emit(deployment, as_json=as_json, render=lambda out: _render_deployment(out, deployment))


def _render_deployment(out: Console, deployment: "Deployment") -> None:
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


def _render_plan(out: Console, plan: "RolloutPlan") -> None:
    out.print(f"{plan.mode} of {plan.model}: version {plan.from_version} to {plan.to_version}")
    for number, line in enumerate(plan.steps(), start=1):
        out.print(f"{number:>3}. {line}", markup=False, highlight=False, soft_wrap=True)


def _roll_out(settings: "Settings", use_case: str, plan: "RolloutPlan", *, as_json: bool) -> None:
    from penstock.serving.rollout_files import Rollout

    options = ["--rollout", plan.model_dump_json()]
    done = Rollout.model_validate(_as_job(settings, use_case, *options))
    stays = done.old if done.outcome == "shadowed" else done.new
    words = {"shadowed": f"the shadow is over; version {stays.version} serves on"}
    said = words.get(str(done.outcome), f"version {stays.version} answers everything")
    emit(done, as_json=as_json, render=lambda out: out.print(f"{plan.model}: {said}"))


def rollback(
    use_case: UseCase,
    reason: Annotated[str, typer.Option(help="Why; for the audit log.")] = "no reason given",
    as_json: JsonFlag = False,
) -> None:
    """Go back: out of a rollout under way, else to the version that served before."""
    from penstock.serving.deployments import Deployment
    from penstock.serving.way_back import roll_back
    from penstock.settings import load_settings
    from penstock.training.declarations import load_model

    settings = load_settings()
    if settings.ray.address is None:
        model = load_model(settings, use_case).name
        with stderr().status("") as status:
            back = roll_back(
                settings, model, reason=reason, report=lambda what: status.update(what)
            )
    else:
        back = Deployment.model_validate(_as_job(settings, use_case, "--back", reason))
    emit(
        back,
        as_json=as_json,
        render=lambda out: out.print(f"{back.model} version {back.version} answers everything"),
    )


def rollout(use_case: UseCase, as_json: JsonFlag = False) -> None:
    """Show the last rollout of a use case's model: how far it is, or how it ended."""
    from penstock.cli.ab_evidence import render_evidence
    from penstock.errors import NotFoundError
    from penstock.serving import rollout_files
    from penstock.settings import load_settings
    from penstock.training.declarations import load_model

    settings = load_settings()
    model = load_model(settings, use_case).name
    found = rollout_files.find(settings, model)
    if found is None:
        raise NotFoundError(f"{model} had no rollout", next_step="penstock deploy … --canary")

    def render(out: Console) -> None:
        _render_plan(out, found.plan)
        if found.evidence is not None:
            render_evidence(out, found, found.evidence)
        moment = rollout_files.now()
        if found.is_over:
            how = f"over: {found.outcome}, {found.reason}"
            out.print(how, markup=False, highlight=False, soft_wrap=True)
            return
        stage = f"stage {found.stage + 1} of {found.plan.num_stages}"
        share = f"{found.share_at(moment):g} % to version {found.plan.to_version}"
        out.print(f"{found.phase}: {stage}, {share}", highlight=False)
        if (moment - found.watched_at).total_seconds() > rollout_files.LEASE_S:
            out.print(
                "Its process is gone. The same command goes on, `penstock rollback` goes back.",
                soft_wrap=True,
            )

    emit(found, as_json=as_json, render=render)


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
        served = bool(_as_job(settings, use_case, "--remove")["was_served"])
    emit(
        {"model": model, "was_served": served},
        as_json=as_json,
        render=lambda out: out.print(
            f"{model} is no longer served" if served else f"{model} was not served"
        ),
    )


def _as_job(settings: "Settings", use_case: str, *options: str) -> dict[str, Any]:
    """Deploy from inside the Ray: Serve's controller is reached from inside its network only."""
    from penstock.cluster.jobs import run_job

    # It asks Serve's ingress, which listens on the head's loopback.
    return run_job(settings, "deploy", [use_case, *options], is_heavy=False)


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
    url: Annotated[
        str | None,
        typer.Option(help="Ask there: https://NAME:PORT; serving.tls.ca says whom to trust."),
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
    where = (url or server.url(settings)).rstrip("/")
    answer = ask(where, model, text, version=version, token=token, ca=settings.serving.tls.ca)
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
