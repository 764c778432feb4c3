"""All settings in one frozen tree, read once from `[tool.penstock]` and `PENSTOCK_*`.

The environment wins over pyproject.toml, which wins over the profile's defaults. Nested fields are
written with two underscores: `PENSTOCK_STORAGE__ROOT`. This is the only file that reads the
environment.
"""

import difflib
import getpass
import json
import os
import re
import socket
import tomllib
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as UnreadableVariableError

from penstock.access_settings import AccessSettings
from penstock.errors import SettingsError
from penstock.prices import CostSettings
from penstock.records import Record
from penstock.settings_sections import (
    FeatureStoreSettings,
    RaySettings,
    ServingSettings,
    StorageSettings,
    TrackingSettings,
    TrainingSettings,
)

Profile = Literal["local", "cluster"]
_PREFIX = "PENSTOCK_"
# Marks every process of a Ray that `penstock up` started, so that `down` stops those and no other.
CLUSTER_ID_VARIABLE = "PENSTOCK_CLUSTER_ID"
# Tells a job which request it answers, and that somebody reads its marker lines.
REQUEST_ID_VARIABLE = "PENSTOCK_REQUEST_ID"
# Tells a job, and whoever prepares its environment, that an earlier one of the request was lost.
ATTEMPT_VARIABLE = "PENSTOCK_ATTEMPT"
_VARIABLES_THAT_ARE_NO_SETTING = frozenset(
    {CLUSTER_ID_VARIABLE, REQUEST_ID_VARIABLE, ATTEMPT_VARIABLE}
)
_SECRETS = frozenset(
    {
        "feature_store.registry_url",
        "feature_store.redis",
        "ray.redis",
        "tracking.uri",
        "kafka",
        "serving.api_key",
    }
)
# What each side has for itself: no secret travels, and no port or path of one machine.
_INGRESS = ("serving.host", *(f"serving.tls.{name}" for name in ("certificate", "key", "port")))
_NOT_FOR_JOBS = _SECRETS | {
    *("project_root", "serving.port", "actor", "serving.tls.ca"),
    *_INGRESS,
}


class Settings(BaseSettings):
    """Every setting of Penstock; frozen, unknown keys refused."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
    )

    profile: Profile = "local"
    actor: str | None = Field(default=None, min_length=1, max_length=200)
    """Who acts, in the audit log; None: the user of this machine."""
    project_root: Path = Path()
    feature_repo: str = "feature_repo"
    storage: StorageSettings = StorageSettings()
    ray: RaySettings = RaySettings()
    feature_store: FeatureStoreSettings = FeatureStoreSettings()
    tracking: TrackingSettings = TrackingSettings()
    training: TrainingSettings = TrainingSettings()
    serving: ServingSettings = ServingSettings()
    access: AccessSettings = AccessSettings()
    cost: CostSettings = CostSettings()
    kafka: Mapping[str, SecretStr] = Field(default_factory=dict)
    """librdkafka's options, `bootstrap.servers` among them; empty: there is no Kafka."""

    @field_validator("kafka", mode="before")
    @classmethod
    def _are_librdkafkas(cls, kafka: Any) -> Any:
        plain = str | int | SecretStr
        if not isinstance(kafka, Mapping) or not all(isinstance(v, plain) for v in kafka.values()):
            raise ValueError("librdkafka's options by name, each a text, a number or a boolean")
        if kafka and "bootstrap.servers" not in kafka:
            raise ValueError("bootstrap.servers among the options, e.g. host:9092")
        # A boolean too: librdkafka writes true, not True.
        return {k: str(v).lower() if isinstance(v, int) else v for k, v in kafka.items()}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over what the file says (which comes in as init arguments)."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        self.serving.check_reach()
        if self.feature_store.online_store == "redis" and not self.redis_address:
            raise ValueError(
                "feature_store.online_store is redis, so feature_store.redis is needed"
            )
        if self.profile == "cluster":
            embedded = {
                "feature_store.registry_url": not self.feature_store.registry_url,
                # SQLite's log beside its file does not work between the machines of one folder.
                "feature_store.online_store = redis": self.feature_store.online_store != "redis",
                "tracking.uri": not self.tracking.uri,
            }
            if any(embedded.values()):
                needed = [name for name, is_embedded in embedded.items() if is_embedded]
                raise ValueError(f"the cluster profile needs {' and '.join(needed)}")
        return self

    @property
    def feature_repo_path(self) -> Path:
        """The folder of declarations."""
        return self.project_root / self.feature_repo

    @property
    def storage_path(self) -> Path:
        """The absolute root of everything stored."""
        return (self.project_root / self.storage.root).resolve()

    def table_path(self, use_case: str, name: str) -> Path:
        """The Delta table of that name."""
        return self.storage_path / "tables" / use_case / name

    @property
    def registry_url(self) -> str:
        """SQLAlchemy URL of Feast's registry."""
        given = self.feature_store.registry_url.get_secret_value()
        return given or f"sqlite:///{self.storage_path / 'feature_registry.db'}"

    @property
    def push_log_url(self) -> str:
        """SQLAlchemy URL of the log of pushed events: on the registry's server, or a file."""
        return self._registry_server or f"sqlite:///{self.storage_path / 'pushed_events.db'}"

    @property
    def task_store_url(self) -> str:
        """SQLAlchemy URL of accepted async requests: the same server, or a file of their own."""
        return self._registry_server or f"sqlite:///{self.storage_path / 'serving' / 'tasks.db'}"

    @property
    def _registry_server(self) -> str:
        given = self.feature_store.registry_url.get_secret_value()
        return "" if given.startswith("sqlite") else given

    @property
    def online_db_path(self) -> Path:
        """The embedded online store's file, where online_store is sqlite."""
        return self.storage_path / "online_store.db"

    @property
    def redis_address(self) -> str:
        """Redis as Feast's connection string."""
        return self.feature_store.redis.get_secret_value()

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking and registry URI."""
        return (
            self.tracking.uri.get_secret_value() or f"sqlite:///{self.storage_path / 'mlflow.db'}"
        )

    @property
    def artifacts_path(self) -> Path:
        """Where MLflow keeps the artifacts of runs."""
        return self.storage_path / "artifacts"

    @property
    def models_path(self) -> Path:
        """Where the signed folders of model versions live: `<model>/<version>/`."""
        return self.storage_path / "models"

    @property
    def keys_path(self) -> Path:
        """Where the signing key (0600) and the trusted public keys live."""
        return self.storage_path / "keys"

    @property
    def acting(self) -> str:
        """Who acts: as it is set, or the user and machine of this process."""
        if self.actor is not None:
            return self.actor
        try:
            user = getpass.getuser()
        except (KeyError, OSError):
            # A container may run as a number that has no name.
            user = f"uid {os.getuid()}"
        return f"{user}@{socket.gethostname()}"

    def node_environment(self) -> dict[str, str]:
        """What every process of a Ray must be told, whoever starts it."""
        return {
            _variable("profile"): self.profile,
            _variable("storage.root"): str(self.storage_path),
        }

    def ingress_environment(self) -> dict[str, str]:
        """What every process of a Ray must be told whose ingress speaks TLS; no job says otherwise.

        A replica that is to answer beyond loopback without keys finds its settings refused.
        """
        if not self.serving.tls.is_on:
            return {}
        keys = (*_INGRESS, "serving.require_key", "serving.public_names")
        return {_variable(key): _written(attrgetter(key)(self)) for key in keys}

    def job_environment(self) -> dict[str, str]:
        """What a submitted job must be told, so that it runs under the settings of its command.

        URLs, passwords and ports are left out: nodes carry their own.
        """
        keys = (k for k in known_keys() if k not in _NOT_FOR_JOBS and not k.startswith("ray."))
        values = {key: attrgetter(key)(self) for key in keys}
        # What is unset is not sent: no text says so.
        variables = {_variable(k): _written(v) for k, v in values.items() if v is not None}
        if self.feature_repo_path.is_relative_to(self.project_root):
            # A job has the project's folder elsewhere.
            in_project = self.feature_repo_path.relative_to(self.project_root)
            variables[_variable("feature_repo")] = str(in_project)
        return variables | self.node_environment()

    def actor_environment(self) -> dict[str, str]:
        """What a submitted job must be told, so that it acts for whoever gave the command."""
        return {_variable("actor"): self.acting}


def inherited_environment() -> dict[str, str]:
    """Copy the environment of this process, for a child to start from."""
    return dict(os.environ)


def export_environment(variables: Mapping[str, str | None]) -> None:
    """Set variables that vendors read in this process; None removes one."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def find_project_root(start: Path) -> Path:
    """Walk up from `start` to the first pyproject.toml with a `[tool.penstock]` table.

    Raises:
        SettingsError: no folder above has one.
    """
    for folder in (start.resolve(), *start.resolve().parents):
        file = folder / "pyproject.toml"
        if file.is_file() and "penstock" in _read_toml(file).get("tool", {}):
            return folder
    raise SettingsError(
        f"no pyproject.toml with a [tool.penstock] table in {start.resolve()} or above it",
        next_step="change into the project's folder, or set PENSTOCK_PROJECT_ROOT",
    )


def load_settings() -> Settings:
    """Read the settings of the project that the current folder belongs to.

    Raises:
        SettingsError: an unknown or ill-typed key, with the nearest known name offered.
    """
    given_root = os.environ.get(f"{_PREFIX}PROJECT_ROOT")
    root = Path(given_root).resolve() if given_root else find_project_root(Path.cwd())
    file = root / "pyproject.toml"
    table = _read_toml(file).get("tool", {}).get("penstock", {}) if file.is_file() else {}
    if not isinstance(table, dict):
        raise SettingsError(f"[tool.penstock] in {file} is {type(table).__name__}, not a table")
    _refuse_unknown_variables(os.environ)
    # MLflow calls home as soon as it is imported, and settings are loaded before anything heavy is.
    export_environment({"MLFLOW_DISABLE_TELEMETRY": "true"})
    try:
        return Settings(**{"project_root": root, **table})
    except ValidationError as error:
        raise _explain(error, file) from None
    except UnreadableVariableError as error:
        # Its message may hold the variable's text, which could be a password.
        name = re.search(r'field "(\w+)"', str(error))
        variable = _variable(name.group(1)) if name else f"a variable {_PREFIX}…"
        raise SettingsError(f"{variable} is not readable", allowed="a JSON object") from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{file} is not readable TOML: {error}", next_step="mend that line"
        ) from None


def known_keys(model: type[BaseModel] = Settings, prefix: str = "") -> list[str]:
    """Every setting's dotted name."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Record):
            keys += known_keys(annotation, f"{prefix}{name}.")
        else:
            keys.append(f"{prefix}{name}")
    return keys


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    by_variable = {_variable(key): key for key in known_keys()}
    for variable in environment:
        if not variable.startswith(_PREFIX) or variable in _VARIABLES_THAT_ARE_NO_SETTING:
            continue
        if variable not in by_variable:
            raise SettingsError(
                f"the environment has {variable}, which is no setting",
                next_step=_nearest(variable, by_variable) or "unset it",
            )


def _variable(key: str) -> str:
    return _PREFIX + key.replace(".", "__").upper()


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return json.dumps(dict(value))
    return json.dumps(value) if isinstance(value, tuple) else str(value)


def _nearest(name: str, known: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"did you mean {near[0]}?" if near else None


def _explain(error: ValidationError, file: Path) -> SettingsError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return SettingsError(
            f"[tool.penstock] in {file} has the unknown key {key!r}",
            allowed=", ".join(known_keys()),
            next_step=_nearest(key, known_keys()),
        )
    if not key:
        return SettingsError(first["msg"].removeprefix("Value error, "), next_step=f"see {file}")
    # A secret's value never goes into a message; its URL could carry a password.
    secret = any(name.startswith(key) for name in _SECRETS)
    shown = "" if secret else f" is {first['input']!r}"
    allowed = first["msg"].removeprefix("Value error, ")
    if key == "profile":
        allowed = " or ".join(get_args(Profile))
    return SettingsError(
        f"the setting {key}{shown}, which does not fit",
        allowed=allowed,
        next_step=f"change it in {file} or in {_variable(key)}",
    )
