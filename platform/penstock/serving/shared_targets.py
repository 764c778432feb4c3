"""What the shared application should answer for: one file a model, which its replicas follow."""

from pathlib import Path

from penstock.files import write_whole
from penstock.settings import Settings

SHARED_APP = "penstock-shared"
"""The Serve application of the models that have none of their own; no model has such a name."""

SHARED_DEPLOYMENT = "shared"


def target_path(settings: Settings, model: str) -> Path:
    """Where a model's file is."""
    return _folder(settings) / f"{model}.json"


def shared_models(settings: Settings) -> list[str]:
    """List the models that the shared application should answer for."""
    return sorted(file.stem for file in _folder(settings).glob("[a-z]*.json"))


def is_shared(settings: Settings, model: str) -> bool:
    """Say whether the shared application should answer for a model."""
    return target_path(settings, model).is_file()


def aim(settings: Settings, model: str, arguments: bytes) -> None:
    """Make a version the target: each replica that has the model changes over by itself.

    Args:
        settings: which storage.
        model: whose.
        arguments: `ModelArguments`, as JSON.
    """
    write_whole(target_path(settings, model), arguments)


def forget(settings: Settings, model: str) -> None:
    """Answer for the model no more."""
    target_path(settings, model).unlink(missing_ok=True)


def _folder(settings: Settings) -> Path:
    return settings.storage_path / "serving" / "shared"
