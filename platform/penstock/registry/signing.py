"""Ed25519 signatures over package manifests: who sealed a version, and that nothing changed since.

Under `settings.keys_path`: `signing.key` is the private key of this installation (0600, made on
first use), `trusted/<key id>.pub` are the public keys whose packages may be loaded. Trust another
installation's packages by putting its .pub file there; stop trusting a key by removing its file
(`penstock signing-keys`, in key_ring.py, does both and writes it down).
"""

import contextlib
import hashlib
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from penstock.errors import IntegrityError
from penstock.files import write_whole
from penstock.locks import exclusive

_PRIVATE_KEY = "signing.key"
_TRUSTED = "trusted"
# A signature over these bytes can't be passed off as one over anything else that this key signs.
_DOMAIN = b"penstock package manifest 1\n"
SIGNATURE_BYTES = 64


class Signer:
    """Signs with this installation's private key, which never leaves the object."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.key_id = key_id(private_key.public_key())

    def __repr__(self) -> str:
        return f"Signer(key_id={self.key_id!r})"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Signer holds the private key and is not sent to other processes")

    def sign(self, manifest: bytes) -> bytes:
        """Give the 64 raw bytes of the detached signature."""
        return self._private_key.sign(_DOMAIN + manifest)


def key_id(public_key: Ed25519PublicKey) -> str:
    """Name a public key: the first 16 hex digits of the SHA-256 of its raw bytes."""
    raw = public_key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:16]


def open_signer(keys_path: Path) -> Signer:
    """Load the private key, or make it on first use; two first users end with the same key.

    Raises:
        IntegrityError: the key is unreadable, open to other users, or no longer trusted.
    """
    file = keys_path / _PRIVATE_KEY
    if not file.exists():
        make_key(keys_path, only_first=True)
    signer = Signer(_load_private_key(file))
    if signer.key_id not in trusted_keys(keys_path):
        raise IntegrityError(
            f"the signing key {signer.key_id} is not among the trusted keys in "
            f"{trusted_folder(keys_path)}",
            next_step=f"put its public key back, or remove {file} so that a new key is made",
        )
    return signer


def trusted_keys(keys_path: Path) -> dict[str, Ed25519PublicKey]:
    """Read every trusted public key, by key id.

    Raises:
        IntegrityError: a file there is no Ed25519 public key, or not the one its name says.
    """
    keys: dict[str, Ed25519PublicKey] = {}
    for file in sorted(trusted_folder(keys_path).glob("*.pub")):
        keys[file.stem] = _load_public_key(file)
    return keys


def trusted_folder(keys_path: Path) -> Path:
    """Where the trusted public keys are."""
    return keys_path / _TRUSTED


def read_public_key(file: Path) -> str:
    """Give the id of the public key in a `.pub` file.

    Raises:
        IntegrityError: it is no Ed25519 public key, or not the one its name says.
    """
    _load_public_key(file)
    return file.stem


def signing_key_id(keys_path: Path) -> str | None:
    """Name the key that this installation signs with; None where it has none yet.

    Raises:
        IntegrityError: the key is unreadable, or open to other users.
    """
    file = keys_path / _PRIVATE_KEY
    return key_id(_load_private_key(file).public_key()) if file.exists() else None


def _load_public_key(file: Path) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _bad_key(file, f"cannot be read as a public key: {error}") from None
    if not isinstance(key, Ed25519PublicKey) or key_id(key) != file.stem:
        raise _bad_key(file, "is not the Ed25519 key that its name says")
    return key


def find_signer(manifest: bytes, signature: bytes, keys_path: Path) -> str | None:
    """Give the id of the trusted key that signed exactly these bytes; None when none did."""
    if len(signature) != SIGNATURE_BYTES:
        return None
    for name, key in trusted_keys(keys_path).items():
        with contextlib.suppress(InvalidSignature):
            key.verify(signature, _DOMAIN + manifest)
            return name
    return None


def make_key(keys_path: Path, *, only_first: bool = False) -> str:
    """Make a key to sign with, trusted from the start, and give its id; the one before stays so.

    Args:
        keys_path: where the keys are.
        only_first: where there is a key to sign with already, that one stays.

    Raises:
        BusyError: another process is making one.
    """
    trusted = trusted_folder(keys_path)
    keys_path.mkdir(parents=True, exist_ok=True)
    keys_path.chmod(0o700)
    trusted.mkdir(exist_ok=True)
    with exclusive(keys_path / ".lock", what="the making of the signing key", wait_s=30):
        file = keys_path / _PRIVATE_KEY
        if only_first and file.exists():
            return key_id(_load_private_key(file).public_key())
        private_key = Ed25519PrivateKey.generate()
        public_key = private_key.public_key()
        pem = private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        public_pem = public_key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        # The public half comes first: killed in between, we leave a trusted key that nobody
        # holds, and not a private key whose packages nobody trusts.
        made = key_id(public_key)
        write_whole(trusted / f"{made}.pub", public_pem)
        write_whole(file, pem, mode=0o600)
        return made


def _load_private_key(file: Path) -> Ed25519PrivateKey:
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        raise IntegrityError(
            f"the private key {file} is open to other users (mode {mode:04o})",
            allowed="mode 0600",
            next_step=f"remove it if others may have read it, else `chmod 600 {file}`",
        )
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    # The vendor's message is not passed on: nothing read from this file goes into a message.
    except (OSError, ValueError, TypeError):
        raise _bad_key(file, "cannot be read as a private key") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad_key(file, "is not an Ed25519 private key")
    return key


def _bad_key(file: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"the key file {file} {what}", next_step="restore the file from a backup, or remove it"
    )
