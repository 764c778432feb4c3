"""The token without which nobody may talk to our Ray."""

import contextlib
import os
import secrets
import stat
from pathlib import Path

from penstock.errors import ClusterError
from penstock.settings import Settings


def own_token_path(settings: Settings) -> Path:
    """Where the token of the Ray of `penstock up` lies."""
    return settings.storage_path / "ray_token"


def ensure(path: Path) -> Path:
    """Make the token unless it exists, readable for its owner only, and give its path back.

    Raises:
        ClusterError: the file exists but is empty, or cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        # Under its name only when it is whole: a kill before leaves none, and never half of one.
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(unfinished, path)
        finally:
            unfinished.unlink()
    # Ray itself writes tokens as 0644.
    path.chmod(0o600)
    read(path)
    return path


def read(path: Path) -> str:
    """Read a token.

    Raises:
        ClusterError: there is none, or it is empty.
    """
    try:
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(
            f"the Ray token {path} cannot be read: {error}",
            next_step="start your Ray by `penstock up`, or name the right file in ray.token_path",
        ) from None
    if not token:
        raise ClusterError(f"the Ray token {path} is empty", next_step="remove that file")
    return token


def is_private(path: Path) -> bool:
    """Tell whether only the owner may read the file, and the owner is us."""
    status = path.stat()
    return stat.S_IMODE(status.st_mode) & 0o077 == 0 and status.st_uid == os.getuid()
