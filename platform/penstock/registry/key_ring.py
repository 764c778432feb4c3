"""The keys whose packages are loaded: one to sign with, and others that are trusted."""

from pathlib import Path

import orjson

from penstock import audit
from penstock.errors import GateRefusedError, UserError, unknown_name
from penstock.files import write_whole
from penstock.records import Record
from penstock.registry import signing
from penstock.registry.package import MANIFEST_FILE
from penstock.roles import check_may
from penstock.settings import Settings


class RingKey(Record):
    """A trusted key, and what hangs on it."""

    key_id: str
    signs: bool
    """This installation seals its versions with it."""
    versions: tuple[str, ...]
    """`<model> <version>` of all that it has sealed, as their manifests say."""


def list_keys(settings: Settings) -> list[RingKey]:
    """Every trusted key.

    Raises:
        IntegrityError: a key's file is damaged.
    """
    sealed: dict[str, list[str]] = {}
    for file in sorted(settings.models_path.glob(f"*/*/{MANIFEST_FILE}")):
        key_id = _named_key(file)
        sealed.setdefault(key_id, []).append(f"{file.parent.parent.name} {file.parent.name}")
    own = signing.signing_key_id(settings.keys_path)
    return [
        RingKey(key_id=key_id, signs=key_id == own, versions=tuple(sealed.get(key_id, ())))
        for key_id in signing.trusted_keys(settings.keys_path)
    ]


def rotate(settings: Settings) -> RingKey:
    """Sign with a new key from now on; what the old one has sealed is loaded as before.

    Raises:
        BusyError: another process is making a key.
        ForbiddenError: the role of whoever acts does not have it.
    """
    check_may(settings, "manage keys")
    before = signing.signing_key_id(settings.keys_path)
    made = signing.make_key(settings.keys_path)
    audit.append(settings, "key.rotate", made, {"before": before})
    return RingKey(key_id=made, signs=True, versions=())


def trust(settings: Settings, file: Path) -> RingKey:
    """Load packages of another installation from now on, by the public key in its `.pub` file.

    Raises:
        UserError: there is no such file.
        IntegrityError: it is no public key, or not the one its name says.
        ForbiddenError: the role of whoever acts does not have it.
    """
    check_may(settings, "manage keys")
    if not file.is_file():
        raise UserError(f"there is no file {file}", allowed="a .pub file of another installation")
    key_id = signing.read_public_key(file)
    trusted = signing.trusted_folder(settings.keys_path)
    trusted.mkdir(parents=True, exist_ok=True)
    # The record first: at no moment is a key trusted that the log has not.
    audit.append(settings, "key.trust", key_id)
    write_whole(trusted / file.name, file.read_bytes())
    return next(key for key in list_keys(settings) if key.key_id == key_id)


def distrust(settings: Settings, key_id: str, *, even_in_use: bool = False) -> RingKey:
    """Load nothing any more that the key has sealed.

    Raises:
        NotFoundError: no such key is trusted; the nearest is offered.
        GateRefusedError: it is the one to sign with, or has sealed versions and `even_in_use` is
            not said.
        ForbiddenError: the role of whoever acts does not have it.
    """
    check_may(settings, "manage keys")
    known = {key.key_id: key for key in list_keys(settings)}
    if key_id not in known:
        raise unknown_name("trusted key", key_id, known)
    key = known[key_id]
    if key.signs:
        raise GateRefusedError(
            f"{key_id} is the key that this installation signs with",
            next_step="`penstock signing-keys rotate` makes another one first",
        )
    if key.versions and not even_in_use:
        raise GateRefusedError(
            f"{key_id} has sealed {', '.join(key.versions)}: none of them would be loaded again",
            next_step="train and register them again, or say --even-in-use if the key is lost",
        )
    audit.append(settings, "key.distrust", key_id, {"versions": ", ".join(key.versions)})
    (signing.trusted_folder(settings.keys_path) / f"{key_id}.pub").unlink(missing_ok=True)
    return key


def _named_key(manifest: Path) -> str:
    try:
        return str(orjson.loads(manifest.read_bytes())["key_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
