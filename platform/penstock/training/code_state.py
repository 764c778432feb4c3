"""The code that a run runs: its commit, what differs from it, and a digest of the code itself.

A Ray job has no .git. So the command that submits it takes the state here, leaves it in the
storage that both sides share, and hands the job its name.
"""

import hashlib
import re
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import Field

from penstock.cluster import source_code
from penstock.cluster.runtime_env import package_folder
from penstock.errors import UserError
from penstock.files import write_whole
from penstock.logs import redact
from penstock.records import Record
from penstock.settings import Settings

MAX_PATCH_BYTES = 1 << 20
_TIMEOUT_S = 20
_SECRET_OPTION = re.compile("password|secret|token|key")
# Whatever the user's own configuration says of diffs.
_PLAIN = (
    "-c",
    "diff.noprefix=false",
    "-c",
    "diff.mnemonicPrefix=false",
    "-c",
    "core.quotePath=false",
)
_LOOKS_SECRET = "it looks as if it held a secret"  # noqa: S105  # a reason, no password


class CodeState(Record):
    """A commit and what differs from it."""

    commit: str | None
    """The project's, `-dirty` after it where tracked files differ; None: it is under no git."""
    patch: str = ""
    """What `git apply` makes of the commit; tracked files only."""
    left_out: Mapping[str, str] = Field(default_factory=dict)
    """Files that differ and stand not in the patch, each with the reason."""

    @property
    def digest(self) -> str:
        """Names the state in the storage."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def patch_digest(self) -> str | None:
        """SHA-256 of the patch; None where there is none."""
        return hashlib.sha256(self.patch.encode()).hexdigest() if self.patch else None


def take(settings: Settings) -> CodeState:
    """Look at the project's checkout; a folder under no git, or no git, gives an empty state.

    A file whose changes hold what looks like a password, or a value of a secret setting, stays
    out of the patch, and so does all that goes beyond `MAX_PATCH_BYTES`.
    """
    folder = settings.project_root
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        diff = _git(folder, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff")
        listed = _git(folder, "ls-files", "--others", "--exclude-standard", "--", "*.py")
    except (OSError, subprocess.SubprocessError):
        return CodeState(commit=None)
    if not diff and not listed:
        return CodeState(commit=commit)
    patch, left_out = choose(diff, _secrets(settings))
    left_out |= dict.fromkeys(listed.splitlines(), "git does not know it")
    return CodeState(commit=f"{commit}-dirty" if diff else commit, patch=patch, left_out=left_out)


def choose(diff: str, secrets: Collection[str] = ()) -> tuple[str, dict[str, str]]:
    """Give the part of a diff that may be kept, and the files that are left out, with why.

    Args:
        diff: what git wrote; bytes that are no UTF-8 as surrogates.
        secrets: texts that may stand nowhere, and URLs whose passwords may not.
    """
    kept: list[str] = []
    left_out: dict[str, str] = {}
    size = 0
    for part in re.split(r"(?m)^(?=diff --git )", diff):
        if not part:
            continue
        num_bytes = len(part.encode(errors="surrogateescape"))
        if redact(part) != part or any(s in part or redact(part, s) != part for s in secrets):
            left_out[_name(part)] = _LOOKS_SECRET
        elif part != part.encode(errors="replace").decode():
            left_out[_name(part)] = "it is no text in UTF-8"
        elif size + num_bytes > MAX_PATCH_BYTES:
            left_out[_name(part)] = f"the patch would be over {MAX_PATCH_BYTES:,} bytes"
        else:
            kept.append(part)
            size += num_bytes
    return "".join(kept), left_out


def hand_over(settings: Settings, state: CodeState) -> list[str]:
    """Leave the state in the storage, and give a job's arguments that name it."""
    if state.commit is None:
        return []
    file = _file(settings, state.digest)
    if not file.is_file():
        write_whole(file, state.model_dump_json().encode(), mode=0o600)
    return ["--code-state", state.digest]


def receive(settings: Settings, name: str | None) -> CodeState:
    """Give the state that a job's command handed over; without a name, look here.

    Raises:
        UserError: there is none of that name.
    """
    if name is None:
        return take(settings)
    file = _file(settings, name)
    if not name.isalnum() or not file.is_file():
        raise UserError(
            f"there is no state of the code named {name!r}",
            next_step="leave --code-state out, or see that the storage is the command's own",
        )
    return CodeState.model_validate_json(file.read_bytes())


def code_digest(settings: Settings, use_case: str) -> str:
    """Give the digest of the package and of the use case's declarations, as they are here."""
    places = {
        use_case: settings.feature_repo_path / use_case,
        "penstock": package_folder(),
    }
    return source_code.digest(source_code.read(places))


def _file(settings: Settings, name: str) -> Path:
    return settings.storage_path / "code_states" / f"{name}.json"


def _name(part: str) -> str:
    found = re.match(r"diff --git a/(.*?) b/", part)
    return found.group(1) if found else part.split("\n", 1)[0]


def _secrets(settings: Settings) -> set[str]:
    options = (value for name, value in settings.kafka.items() if _SECRET_OPTION.search(name))
    given = (
        settings.feature_store.registry_url,
        settings.feature_store.redis,
        settings.ray.redis,
        settings.tracking.uri,
        *options,
    )
    return {value.get_secret_value() for value in given} - {""}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *_PLAIN, *arguments],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=True,
        timeout=_TIMEOUT_S,
    )
    return done.stdout
