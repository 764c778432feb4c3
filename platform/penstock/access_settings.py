"""The settings of who may do what: roles, tokens of an identity provider, TLS."""

import ipaddress
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from penstock.records import Record

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
Role = Literal["viewer", "data_scientist", "approver", "operator", "admin"]
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,62})(\.[a-z0-9][a-z0-9-]{0,62})*")


class AccessSettings(Record):
    """Who has which role, for the commands that change what is shared."""

    roles: Mapping[str, Role] = Field(default_factory=dict)
    """Role by actor (`alice` or `alice@host`); empty: everybody is an admin."""


class TlsSettings(Record):
    """TLS at the ingress, and what our own client trusts."""

    certificate: str | None = None
    """A PEM file on the node, the chain behind the certificate; None: no TLS."""
    key: str | None = None
    """Its private key, a PEM file that others may not read."""
    port: int = Field(default=8443, ge=1, le=65535)
    """Where TLS is spoken, on `serving.host`."""
    ca: str | None = None
    """A PEM file that `penstock predict --url` trusts; None: what the system trusts."""

    @field_validator("certificate", "key", "ca")
    @classmethod
    def _is_absolute(cls, path: str | None) -> str | None:
        return _absolute(path)

    @model_validator(mode="after")
    def _is_a_pair(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key, or neither of them")
        return self

    @property
    def is_on(self) -> bool:
        """Whether the ingress speaks TLS."""
        return self.certificate is not None


class JwtSettings(Record):
    """Tokens of an identity provider (OpenID Connect) instead of API keys."""

    issuer: str | None = Field(default=None, min_length=1)
    """What `iss` must be, letter by letter; None: no token is taken, API keys alone."""
    audience: str | None = Field(default=None, min_length=1)
    """What `aud` must hold."""
    jwks_file: str | None = None
    """The issuer's public keys (JWKS), a file that every replica sees."""
    jwks_url: str | None = None
    """The same as the issuer publishes it: https, or http of this machine."""
    roles_claim: str = Field(default="roles", min_length=1)
    """The claim that holds roles of ours."""
    max_requests_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of one subject, at each replica; None: no limit but the replica's own."""

    @field_validator("jwks_file")
    @classmethod
    def _is_absolute(cls, path: str | None) -> str | None:
        return _absolute(path)

    @field_validator("jwks_url")
    @classmethod
    def _is_safe(cls, url: str | None) -> str | None:
        if url is not None and not is_safe_url(url):
            raise ValueError("an https URL (or http of 127.0.0.1, localhost, [::1]), no password")
        return url

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        keys = (self.jwks_file, self.jwks_url)
        if all(part is None for part in (self.issuer, self.audience, *keys)):
            return self
        if self.issuer is None or self.audience is None or keys.count(None) != 1:
            raise ValueError("issuer, audience, and one of jwks_file and jwks_url")
        return self


def is_loopback(host: str) -> bool:
    """Say whether an address, or `localhost`, is of this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Say whether it is an IP address, without a zone."""
    try:
        return "%" not in host and bool(ipaddress.ip_address(host))
    except ValueError:
        return False


def is_public_name(name: str) -> bool:
    """Say whether clients can send it as `Host`: a DNS name in small letters, or an address."""
    if name.startswith("[") and name.endswith("]"):
        return ":" in name and is_address(name[1:-1])
    return _NAME.fullmatch(name) is not None


def is_safe_url(url: str) -> bool:
    """Say whether a secret may go there: https, or http that does not leave this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def _absolute(path: str | None) -> str | None:
    if path is not None and not (PurePosixPath(path).is_absolute() and path.isprintable()):
        raise ValueError("an absolute path")
    return path
