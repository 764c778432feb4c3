"""`penstock init`: the skeleton of a new use case, ready to be filled in."""

import keyword
import re
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from penstock.cli.output import JsonFlag, emit
from penstock.errors import UserError

_SKELETON = Path(__file__).parent / "skeleton"


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(init)


def init(
    use_case: Annotated[str, typer.Argument(help="The new use case's name, e.g. churn.")],
    entity: Annotated[
        str, typer.Option(help="Whom the features are about: one word, e.g. customer.")
    ] = "customer",
    as_json: JsonFlag = False,
) -> None:
    """Write the skeleton of a new use case into the feature repo."""
    from penstock.settings import load_settings

    folder = write_skeleton(load_settings().feature_repo_path, use_case, entity)
    files = sorted(str(path) for path in folder.iterdir())
    emit(
        {"use_case": use_case, "files": files},
        as_json=as_json,
        render=lambda console: console.print(
            f"wrote {len(files)} files to {folder}: fit tables.py to your data, then\n"
            f"  penstock data ingest {use_case}.events FILES…",
            highlight=False,
        ),
    )


def write_skeleton(feature_repo: Path, use_case: str, entity: str) -> Path:
    """Write the declarations of a use case, all of them or none, and return their folder.

    Raises:
        UserError: a name is no plain identifier, or the use case exists.
    """
    for name in (use_case, entity):
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name) or keyword.iskeyword(name):
            raise UserError(
                f"{name!r} cannot be a name here",
                allowed="lower-case letters, digits and _, beginning with a letter",
            )
    folder = feature_repo / use_case
    if folder.exists():
        raise UserError(f"{folder} exists already", next_step="choose another name")
    names = {
        "use_case": use_case,
        "entity": entity,
        "entity_id": f"{entity}_id",
        "year": str(datetime.now(UTC).year),
    }
    feature_repo.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".init-", dir=feature_repo))
    try:
        (draft / "__init__.py").touch()
        for template in sorted(_SKELETON.glob("*.py.txt")):
            text = Template(template.read_text("utf-8")).substitute(names)
            (draft / template.name.removesuffix(".txt")).write_text(text, "utf-8")
        draft.chmod(0o755)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder
