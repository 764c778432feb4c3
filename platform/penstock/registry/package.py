"""A model version as a signed folder: sealed once, verified before every load.

    <models>/<model>/<version>/
        model.onnx       one graph: `features` float64 [n, F] in, `score` float32 [n] out
        native/…         the native weights, without pickle
        signature.json   what goes in and comes out: see `Signature`
        training.json    the run, its data and its metrics
        quantization.json  where int8 is declared: whether model.onnx is in int8, and why
        background.json  training rows that scores are explained against, where they are
        card.md          the model card
        manifest.json    SHA-256 and size of every file above, model, version, key id
        manifest.sig     64 raw bytes: Ed25519 over manifest.json

A serving replica imports this file: no mlflow, no training, no Ray here.
"""

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import orjson
from pydantic import Field, ValidationError

from penstock.errors import IntegrityError
from penstock.files import sync_folder
from penstock.handover import (
    MODEL_FILE,
    QUANTIZATION_FILE,
    SIGNATURE_FILE,
    TRAINING_FILE,
    ServingPolicy,
)
from penstock.records import Record
from penstock.registry.signing import SIGNATURE_BYTES, find_signer, open_signer
from penstock.settings import Settings

CARD_FILE = "card.md"
MANIFEST_FILE = "manifest.json"
MANIFEST_SIGNATURE_FILE = "manifest.sig"
_NEEDED = (MODEL_FILE, SIGNATURE_FILE, TRAINING_FILE)
_OURS = (MANIFEST_FILE, MANIFEST_SIGNATURE_FILE)
_SEALING = ".sealing-"
_MAX_MANIFEST_BYTES = 4 << 20


class RequestField(Record):
    """One field that a caller sends: a join key, the event time or a request source's value."""

    name: str
    dtype: Literal["int64", "float64", "bool", "string", "timestamp"]


class Signature(Record):
    """What a model takes and gives; `signature.json`, written by training."""

    model: str
    estimator: str
    use_case: str
    feature_service: str
    feature_names: tuple[str, ...] = Field(min_length=1)
    """The order of the columns of the graph's input."""
    request_fields: tuple[RequestField, ...]
    label: str | None
    threshold: float | None = None
    """A score at or above it is the positive label; None: the model gives scores only."""
    serving: ServingPolicy = ServingPolicy()


class FileEntry(Record):
    """What a file of the package must be."""

    sha256: str
    size_bytes: int


class PackageManifest(Record):
    """Every file of a model version, and who sealed it when."""

    format: Literal[1] = 1
    model: str
    version: int
    created: datetime
    key_id: str
    files: dict[str, FileEntry]

    def canonical_bytes(self) -> bytes:
        """Give the one spelling that is signed: sorted keys, no spaces."""
        return orjson.dumps(self.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)

    @property
    def digest(self) -> str:
        """The version's identity: SHA-256 of the canonical manifest, and so of every byte."""
        return hashlib.sha256(self.canonical_bytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What a training left, read once: nothing is read from disk again."""

    files: Mapping[str, bytes]
    signature: Signature

    @property
    def onnx(self) -> bytes:
        """The graph, for `onnxruntime.InferenceSession(package.onnx)`."""
        return self.files[MODEL_FILE]

    @property
    def training(self) -> dict[str, Any]:
        """What the run says of itself."""
        return dict(orjson.loads(self.files[TRAINING_FILE]))

    @property
    def quantization(self) -> dict[str, Any] | None:
        """What was decided about int8; None where it was not declared."""
        raw = self.files.get(QUANTIZATION_FILE)
        return None if raw is None else dict(orjson.loads(raw))


@dataclass(frozen=True, kw_only=True)
class VerifiedPackage(Bundle):
    """Exactly the bytes that were verified."""

    manifest: PackageManifest

    @property
    def digest(self) -> str:
        """The version's identity."""
        return self.manifest.digest


def read_bundle(folder: Path, *, model: str) -> Bundle:
    """Read the folder that a training left.

    Raises:
        IntegrityError: it lacks a file, holds something that is no plain file, or is of another
            model.
    """
    contents = _read_tree(folder)
    for name in _NEEDED:
        if name not in contents:
            raise IntegrityError(f"the bundle {folder} has no {name}", next_step="train it again")
    for name in _OURS:
        if name in contents:
            raise IntegrityError(f"the bundle {folder} already holds a {name}")
    signature = _parse_signature(contents[SIGNATURE_FILE], model=model, where=folder)
    return Bundle(files=contents, signature=signature)


def seal(
    bundle: Bundle, into: Path, settings: Settings, *, version: int, card: str
) -> PackageManifest:
    """Write a run's bundle into the folder `into`, signed; all of it appears at once or nothing.

    Args:
        bundle: what training left.
        into: `<models>/<model>/<version>`; must not exist.
        settings: says where the signing key is.
        version: signed with the model's name, so a folder can't pose as another version.
        card: the model card, Markdown.

    Raises:
        IntegrityError: `into` already exists.
    """
    if into.exists():
        raise IntegrityError(
            f"{into} exists already: a model version is sealed once",
            next_step="register the run again; it gets a version of its own",
        )
    signer = open_signer(settings.keys_path)
    contents = {**bundle.files, CARD_FILE: card.encode()}
    manifest = PackageManifest(
        model=bundle.signature.model,
        version=version,
        created=datetime.now(UTC),
        key_id=signer.key_id,
        files={
            name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
            for name, content in contents.items()
        },
    )
    contents[MANIFEST_FILE] = manifest.canonical_bytes()
    contents[MANIFEST_SIGNATURE_FILE] = signer.sign(contents[MANIFEST_FILE])
    into.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{_SEALING}{into.name}-", dir=into.parent))
    try:
        temporary.chmod(0o755)
        _write_tree(temporary, contents)
        temporary.rename(into)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(into.parent)
    return manifest


def remove_unfinished(model_folder: Path) -> int:
    """Clear away what killed sealings left; call it only while no other one can be sealing."""
    left = list(model_folder.glob(f"{_SEALING}*")) if model_folder.is_dir() else []
    for folder in left:
        shutil.rmtree(folder)
    return len(left)


def verify(folder: Path, settings: Settings, *, digest: str | None = None) -> VerifiedPackage:
    """Read every file of a model version once, and hand out those bytes if all of them are right.

    Args:
        folder: `<models>/<model>/<version>`; its name must be the one that was signed.
        settings: says where the trusted public keys are.
        digest: the identity that the registry recorded; given, the package must have it.

    Raises:
        IntegrityError: names the first file that is missing, extra, linked, changed or unsigned.
    """
    if not folder.is_dir() or folder.is_symlink():
        raise _bad(folder, "", "is no folder")
    manifest = _read_manifest(folder, settings)
    found = _list_tree(folder)
    expected = {*manifest.files, *_OURS}
    for name in sorted(expected - found.keys()):
        raise _bad(folder, name, "is missing")
    for name in sorted(found.keys() - expected):
        raise _bad(folder, name, "is not in the manifest")
    contents: dict[str, bytes] = {}
    for name, entry in sorted(manifest.files.items()):
        content = _read_file(folder, name, limit_bytes=entry.size_bytes)
        if len(content) != entry.size_bytes:
            raise _bad(folder, name, f"is not of the signed size, {entry.size_bytes} bytes")
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise _bad(folder, name, "has not the signed SHA-256")
        contents[name] = content
    if (manifest.model, str(manifest.version)) != (folder.parent.name, folder.name):
        raise _bad(
            folder, MANIFEST_FILE, f"is the one of {manifest.model} version {manifest.version}"
        )
    if digest is not None and manifest.digest != digest:
        raise _bad(folder, MANIFEST_FILE, "is not the one that was registered")
    for name in _NEEDED:
        if name not in contents:
            raise _bad(folder, name, "is missing")
    signature = _parse_signature(contents[SIGNATURE_FILE], model=manifest.model, where=folder)
    return VerifiedPackage(files=contents, signature=signature, manifest=manifest)


def _read_manifest(folder: Path, settings: Settings) -> PackageManifest:
    raw = _read_file(folder, MANIFEST_FILE, limit_bytes=_MAX_MANIFEST_BYTES)
    raw_signature = _read_file(folder, MANIFEST_SIGNATURE_FILE, limit_bytes=SIGNATURE_BYTES)
    # The signature comes before the parser: nothing unsigned is interpreted.
    key_id = find_signer(raw, raw_signature, settings.keys_path)
    if key_id is None:
        raise _bad(
            folder,
            MANIFEST_FILE,
            f"is signed by no key in {settings.keys_path / 'trusted'}",
        )
    try:
        manifest = PackageManifest.model_validate_json(raw)
    except ValidationError:
        raise _bad(folder, MANIFEST_FILE, "is of a form that this Penstock can't read") from None
    if manifest.key_id != key_id or manifest.canonical_bytes() != raw:
        raise _bad(folder, MANIFEST_FILE, "is not in its canonical form")
    return manifest


def _parse_signature(raw: bytes, *, model: str, where: Path) -> Signature:
    try:
        signature = Signature.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the document"
        raise _bad(where, SIGNATURE_FILE, f"does not fit at {key}: {first['msg']}") from None
    if signature.model != model:
        raise _bad(where, SIGNATURE_FILE, f"is the one of the model {signature.model!r}")
    return signature


def _list_tree(folder: Path) -> dict[str, os.stat_result]:
    """Every plain file below the folder by its relative name; anything else is refused."""
    found: dict[str, os.stat_result] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            status = path.lstat()
            relative = path.relative_to(folder).as_posix()
            if stat.S_ISREG(status.st_mode):
                found[relative] = status
            elif not stat.S_ISDIR(status.st_mode):
                raise _bad(folder, relative, "is a link or a special file")
            elif not any(path.iterdir()):
                raise _bad(folder, relative, "is an empty folder")
    return found


def _read_file(folder: Path, name: str, *, limit_bytes: int) -> bytes:
    """Read a plain file, at most one byte beyond the limit; links are not followed."""
    try:
        handle = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise _bad(folder, name, "is missing") from None
    except OSError as error:
        raise _bad(folder, name, f"cannot be read: {error.strerror}") from None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _bad(folder, name, "is no plain file")
        return file.read(limit_bytes + 1)


def _read_tree(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        raise IntegrityError(f"there is no bundle in {folder}", next_step="train the model again")
    return {
        name: _read_file(folder, name, limit_bytes=status.st_size)
        for name, status in _list_tree(folder).items()
    }


def _write_tree(folder: Path, contents: Mapping[str, bytes]) -> None:
    folders = {folder}
    for name, content in contents.items():
        path = folder / PurePosixPath(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        folders.update(p for p in path.parents if p.is_relative_to(folder))
        with path.open("xb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
    for inner in folders:
        sync_folder(inner)


def _bad(folder: Path, name: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"{folder / name} {what}",
        next_step="do not load it: restore the folder from a backup, or train and register again",
    )
