"""What the ingress needs to speak TLS: files that fit each other, linked where HAProxy looks."""

import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.errors import SettingsError
from penstock.settings import Settings

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


def address(settings: Settings) -> str | None:
    """Write where TLS is spoken, as `bind` takes it; None: nowhere."""
    serving = settings.serving
    if not serving.tls.is_on:
        return None
    host = "127.0.0.1" if serving.host == "localhost" else serving.host
    return f"[{host}]:{serving.tls.port}" if ":" in host else f"{host}:{serving.tls.port}"


def link(settings: Settings, folder: Path) -> Path:
    """Link certificate and key into the folder, under the two names that HAProxy pairs.

    Returns:
        The certificate's link; the key's is `<it>.key`. No secret is copied, and a renewed pair is
        read by the next HAProxy.

    Raises:
        SettingsError: they are missing, unreadable, don't fit each other, or are out of date.
    """
    certificate, key = check(settings)
    made = folder / "tls.pem"
    for name, target in ((made, certificate), (folder / "tls.pem.key", key)):
        name.unlink(missing_ok=True)
        name.symlink_to(target)
    return made


def check(settings: Settings) -> tuple[Path, Path]:
    """Hold certificate and key against each other and the calendar; give their paths.

    Raises:
        SettingsError: they are missing, unreadable, don't fit each other, or are out of date.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    tls = settings.serving.tls
    if tls.certificate is None or tls.key is None:
        raise SettingsError("serving.tls has no certificate", allowed="certificate and key")
    paths = Path(tls.certificate), Path(tls.key)
    certificate = _read_certificate(paths[0])
    if _mode(paths[1]) & stat.S_IRWXO:
        raise SettingsError(
            f"the key {paths[1]} can be read by everybody", next_step=f"chmod 600 {paths[1]}"
        )
    try:
        key = load_pem_private_key(paths[1].read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(
            f"the key {paths[1]} can't be read: {type(error).__name__}",
            allowed="a private key in PEM, without a password",
        ) from None
    if key.public_key() != certificate.public_key():
        raise SettingsError(f"the key {paths[1]} is not that of the certificate {paths[0]}")
    return paths


def _read_certificate(path: Path) -> "Certificate":
    from cryptography.x509 import load_pem_x509_certificates

    try:
        certificate = load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"the certificate {path} can't be read: {type(error).__name__}",
            allowed="certificates in PEM, the server's own first",
        ) from None
    now = datetime.now(UTC)
    first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not first <= now <= last:
        raise SettingsError(
            f"the certificate {path} is valid from {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"
            " UTC, not now",
            next_step="renew it",
        )
    return certificate


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError as error:
        raise SettingsError(f"the key {path} can't be read: {type(error).__name__}") from None
