"""The code that replicas run: a frozen copy of the declarations and the package, by its digest.

A replica may be started again long after the one who deployed has gone, and must then come up with
the code of that deploy, whatever the project's folder holds by then. So it runs from a copy in the
storage, which every node shares.
"""

import shutil
from pathlib import Path

from penstock.cluster import source_code
from penstock.cluster.runtime_env import package_folder
from penstock.locks import exclusive
from penstock.settings import Settings

_FREEZING = ".freezing-"
_WAIT_S = 60.0


def freeze_code(settings: Settings) -> Path:
    """Copy project settings, declarations and package into the storage, once per content.

    Returns:
        The folder; its name is the digest of what it holds.
    """
    # Read once: what is copied is what the digest names, whatever is edited meanwhile.
    contents = source_code.read(
        {
            "pyproject.toml": settings.project_root / "pyproject.toml",
            settings.feature_repo: settings.feature_repo_path,
            "penstock": package_folder(),
        }
    )
    target = settings.storage_path / "serving" / "code" / source_code.digest(contents)[:32]
    with exclusive(target.parent / ".lock", what="the copy of the code", wait_s=_WAIT_S):
        # Of a deploy that was killed: no other one holds the lock.
        for left in target.parent.glob(f"{_FREEZING}*"):
            shutil.rmtree(left)
        if not target.is_dir():
            temporary = target.with_name(f"{_FREEZING}{target.name}")
            for name, content in contents.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            temporary.rename(target)
    return target
