"""The sections of the settings, each with its defaults."""

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from penstock.access_settings import (
    LOOPBACK_HOSTS,
    JwtSettings,
    TlsSettings,
    is_address,
    is_public_name,
)
from penstock.records import Record

_ONE_REDIS = re.compile(r"[^\s,:=@/]+:\d+(,((username|password)=[^,]*|ssl=(true|false)))*")
_REDIS_ADDRESS = re.compile(r"[^\s,:=@/]+:\d+(,[^\s,:=@/]+:\d+)*(,\w+=[^,]*)*")


class StorageSettings(Record):
    """Where tables, model versions and the embedded databases live."""

    root: str = ".penstock"
    """A folder (relative: to the project's root), on a cluster one that every node shares."""


class RaySettings(Record):
    """The Ray that work runs on."""

    address: str | None = None
    """A dashboard URL of another Ray, e.g. `http://head:8265`; None: the one of `penstock up`."""
    token_path: str | None = None
    """A file that holds the token of `address`; None: Ray's own places for one."""
    num_logical_cpus: int = Field(default=8, ge=1)
    """Slots for tasks and replicas of a local Ray; more than the cores, so nothing starves."""
    object_store_memory_bytes: int = Field(default=1 << 30, ge=80 << 20)
    gcs_port: int = Field(default=6390, ge=1024, le=65535)
    dashboard_port: int = Field(default=8265, ge=1024, le=65535)
    metrics_port: int = Field(default=8290, ge=1024, le=65535)
    redis: SecretStr = SecretStr("")
    """`host:port[,username=…][,password=…][,ssl=true]`: where a cluster's head keeps what it must
    know to come back; empty: a cluster ends with its head."""
    redis_namespace: str = Field(default="penstock", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Names the cluster in that Redis; two clusters of one name would take each other's place."""

    @field_validator("redis")
    @classmethod
    def _is_one_redis(cls, redis: SecretStr) -> SecretStr:
        given = redis.get_secret_value()
        if given and not _ONE_REDIS.fullmatch(given):
            raise ValueError(
                "host:port[,username=…][,password=…][,ssl=true]: one server, its database 0; "
                "a password holds no comma"
            )
        return redis

    @field_validator("address")
    @classmethod
    def _is_a_dashboard(cls, address: str | None) -> str | None:
        allowed = "the URL of a Ray dashboard, e.g. http://127.0.0.1:8265"
        if address is not None:
            try:
                parts = urlsplit(address)
                is_url = parts.scheme in ("http", "https") and bool(parts.hostname)
                _ = parts.port
            except ValueError:
                is_url = False
            if not is_url:
                raise ValueError(allowed)
        return address


class FeatureStoreSettings(Record):
    """Feast's registry and online store."""

    registry_url: SecretStr = SecretStr("")
    online_store: Literal["sqlite", "redis"] = "sqlite"
    redis: SecretStr = SecretStr("")
    """`host:port[,password=…]` as Feast writes it; needed where online_store is redis."""
    join_memory_bytes: int = Field(default=4 << 30, ge=1 << 20)
    """What a point-in-time join may take in one process; larger ones are spread over tasks."""

    @field_validator("redis")
    @classmethod
    def _is_in_feasts_form(cls, redis: SecretStr) -> SecretStr:
        given = redis.get_secret_value()
        if given and not _REDIS_ADDRESS.fullmatch(given):
            raise ValueError("host:port[,host:port…][,key=value…]; a password holds no comma")
        return redis


class TrainingSettings(Record):
    """The process that trains."""

    rows_memory_bytes: int | None = Field(default=None, ge=0)
    """What rows may take in it, more lie in files; None: half of what is free."""


class TrackingSettings(Record):
    """MLflow's tracking server or database."""

    uri: SecretStr = SecretStr("")


class ServingSettings(Record):
    """Serve's HTTP ingress."""

    host: str = "127.0.0.1"
    """The address where TLS is spoken; plain HTTP is spoken on loopback alone."""
    port: int = Field(default=8000, ge=1024, le=65535)
    tls: TlsSettings = TlsSettings()
    public_names: tuple[str, ...] = ()
    """Names and addresses that requests may be sent to, beside those of loopback."""
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    grpc: bool = False
    """Whether the Open Inference Protocol is spoken over gRPC, too, on the fifth port behind."""
    require_key: bool = False
    """Whether every request must bear an API key, or a token of `jwt`."""
    jwt: JwtSettings = JwtSettings()
    api_key: SecretStr = SecretStr("")
    """What commands send where keys are asked for; empty: their own, which the storage has."""
    log_predictions: bool = True
    """Whether replicas log each prediction with the features that it was made from."""
    prediction_log_bytes: int = Field(default=4 << 30, ge=1 << 20)
    """What one replica's log may hold before it is collected; then predictions are left out."""
    shared_replicas: int = Field(default=1, ge=1)
    """Replicas of the application that serves the models whose policy says `shared`."""
    shared_model_bytes: int = Field(default=1 << 30, ge=1 << 20)
    """What such models may take of one replica's memory; beyond, the least recently used go."""

    @property
    def is_public(self) -> bool:
        """Whether more than this machine can reach it."""
        return self.host not in LOOPBACK_HOSTS

    @property
    def plain_host(self) -> str:
        """The loopback address where Serve itself listens."""
        return "127.0.0.1" if self.is_public else self.host

    def check_reach(self) -> None:
        """Refuse what would let somebody in whom nobody asks for a key.

        Raises:
            ValueError: says what is missing.
        """
        wrong = [name for name in self.public_names if not is_public_name(name)]
        if wrong:
            raise ValueError(
                f"serving.public_names has {wrong[0]!r}; Allowed: DNS names in small letters and "
                "IP addresses, without a port"
            )
        if self.public_names and not self.require_key:
            raise ValueError("serving.public_names needs serving.require_key = true")
        if self.jwt.issuer is not None and not self.require_key:
            raise ValueError("serving.jwt needs serving.require_key = true")
        if self.tls.is_on and self.tls.port == self.port:
            raise ValueError(f"serving.tls.port and serving.port are both {self.port}")
        if not self.is_public:
            return
        if not is_address(self.host):
            raise ValueError(f"serving.host is {self.host!r}; Allowed: localhost or an IP address")
        missing = {
            "serving.require_key = true": not self.require_key,
            "serving.tls.certificate and serving.tls.key": not self.tls.is_on,
            "serving.public_names": not self.public_names,
        }
        if any(missing.values()):
            needed = [name for name, is_missing in missing.items() if is_missing]
            raise ValueError(
                f"serving.host is {self.host!r}: beyond loopback nobody is served without TLS and "
                f"a key. Missing: {', '.join(needed)}"
            )
