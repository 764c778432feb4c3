"""What feedback about a model may say: which fields name an entity, and what its truth can be.

The newest signed version says the fields of a request, the declarations say what the label is.
"""

from pathlib import Path

from penstock.data.contracts import load_tables
from penstock.errors import DeclarationError, NotFoundError, unknown_name
from penstock.records import Record
from penstock.registry.package import RequestField, verify
from penstock.settings import Settings
from penstock.training.declarations import load_model

# What is equal or not: no float names an entity, and the time stands beside it.
_NAMING = frozenset({"int64", "string", "bool"})


class FeedbackTarget(Record):
    """A model that predictions came from."""

    model: str
    use_case: str
    entity_fields: tuple[RequestField, ...]
    """The fields of a request that may name an entity."""
    is_binary: bool
    """The truth is 0 or 1; else any finite number."""


def feedback_table(use_case: str) -> str:
    """Name the table that holds a use case's feedback."""
    return f"{use_case}.feedback"


def newest_package(settings: Settings, model: str) -> Path:
    """Find the folder of the model's newest version.

    Raises:
        NotFoundError: no version of such a model was ever registered.
    """
    root = settings.models_path
    # A name is looked up among the folders and never made into a path: it comes from a caller.
    folders = {path.name: path for path in root.glob("*/")} if root.is_dir() else {}
    if model not in folders:
        raise unknown_name("registered model", model, folders)
    versions = [path for path in folders[model].iterdir() if path.name.isdecimal()]
    if not versions:
        raise NotFoundError(
            f"no version of {model} is registered", next_step="train and register it first"
        )
    return max(versions, key=lambda path: int(path.name))


def target_of(settings: Settings, package: Path) -> FeedbackTarget:
    """Say what feedback about the model of this package may be.

    Raises:
        IntegrityError: the package is not what was signed.
        DeclarationError: the use case declares a table where its feedback would go.
    """
    signature = verify(package, settings).signature
    use_case = signature.use_case
    table = feedback_table(use_case)
    if table in load_tables(settings, use_case):
        raise DeclarationError(
            f"{use_case} declares the table {table}, which is where its feedback goes",
            next_step="rename the declared table",
        )
    return FeedbackTarget(
        model=signature.model,
        use_case=use_case,
        entity_fields=tuple(f for f in signature.request_fields if f.dtype in _NAMING),
        is_binary=load_model(settings, use_case).task == "binary",
    )


def find_target(settings: Settings, model: str) -> FeedbackTarget:
    """Say what feedback about a model may be; see `newest_package` and `target_of`."""
    return target_of(settings, newest_package(settings, model))
