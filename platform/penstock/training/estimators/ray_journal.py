"""Ray Train as the journal of a training loop: checkpoints go to its storage meanwhile."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar, cast

import ray.train
from ray.train import Checkpoint, CheckpointUploadMode

Stored = TypeVar("Stored")
_logger = logging.getLogger(__name__)
_RETRY_WAITS_S = (0.5, 2.0, 8.0, 30.0)


class RayJournal:
    """Reports to Ray Train's controller, which knows of a checkpoint once it is stored whole."""

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """Open the last checkpoint of this fit, whichever attempt made it."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            yield Path(folder)

    def report(self, metrics: Mapping[str, float], write: Callable[[Path], None] | None) -> None:
        """Tell metrics; write this worker's part here and let it be stored in the background."""
        if write is None:
            ray.train.report(dict(metrics))
            return
        folder = tempfile.mkdtemp(prefix="penstock-checkpoint-")
        write(Path(folder))
        ray.train.report(
            dict(metrics),
            checkpoint=Checkpoint.from_directory(folder),
            # The folder is removed once it is stored.
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
            checkpoint_upload_fn=_upload,
        )


def _upload(checkpoint: Checkpoint, name: str) -> Checkpoint:
    storage = ray.train.get_context().get_storage()
    stored = retried(lambda: storage.persist_current_checkpoint(checkpoint, name), _RETRY_WAITS_S)
    return cast(Checkpoint, stored)


def retried(store: Callable[[], Stored], waits_s: tuple[float, ...]) -> Stored:
    """Give what `store` gives; a storage that fails is asked again after each wait."""
    for wait_s in waits_s:
        try:
            return store()
        except OSError as error:
            _logger.warning("a checkpoint was not stored: %s; again in %s s", error, wait_s)
            time.sleep(wait_s)
    return store()
