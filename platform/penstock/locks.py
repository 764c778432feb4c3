"""Locks that die with their holder, for the few steps that must not run twice at once."""

import contextlib
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from penstock.errors import BusyError


@contextlib.contextmanager
def exclusive(path: Path, *, what: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file for the duration of the block; the kernel frees it if we are killed.

    Args:
        path: the lock file; made when absent, never removed (removal would race).
        what: what is held, in the error's words.
        wait_s: how long to wait for another holder before giving up.

    Raises:
        BusyError: another process still holds it after `wait_s`; names that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
                    raise BusyError(
                        f"{what} is held by process {holder}", next_step="try again when it ends"
                    ) from None
                time.sleep(0.02)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}".encode(), 0)
        yield
    finally:
        os.close(handle)


def is_held(path: Path) -> bool:
    """Whether some process holds the lock file at this moment; never waits."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who ask do not take each other for the holder.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextlib.contextmanager
def private_folder(root: Path, *, what: str) -> Iterator[Path]:
    """Give an empty folder of our own under the root, removed at the end of the block.

    Folders whose owner died are removed first: each is locked by its owner.

    Args:
        root: the folder that holds all of them and nothing else.
        what: what they are for, in an error's words.
    """
    own = root / uuid.uuid4().hex
    with contextlib.ExitStack() as held:
        with exclusive(root / ".lock", what=what, wait_s=60):
            for other in root.iterdir():
                # An owner that ends removes its own folder, at this moment perhaps.
                gone = (BusyError, FileNotFoundError)
                if other.is_dir():
                    with contextlib.suppress(*gone), exclusive(other / ".lock", what="it"):
                        shutil.rmtree(other, ignore_errors=True)
            own.mkdir()
            held.enter_context(exclusive(own / ".lock", what=what))
        try:
            yield own
        finally:
            shutil.rmtree(own, ignore_errors=True)
