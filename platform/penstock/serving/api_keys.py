"""API keys: who may ask for what. A key is `<id>.<secret>`; only a hash of the secret is kept.

    <storage>/access/api_keys.json   every key that was ever made, without its secret (0600)

A replica looks at the file's stamp once a second, so a key that was revoked is refused within that.
A file that is damaged lets nobody in.
"""

import hashlib
import hmac
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import orjson
from pydantic import Field, ValidationError

from penstock import audit
from penstock.errors import IntegrityError, RequestError, UserError, unknown_name
from penstock.files import write_whole
from penstock.locks import exclusive
from penstock.records import Record
from penstock.roles import check_may
from penstock.serving.limits import RateLimit
from penstock.settings import Settings

ADMIN = "admin"
READ = "read"
FEEDBACK = "feedback"
SCOPES = "predict:<model> or predict:*, push:<table> or push:*, feedback, read, admin"
_SCOPE = re.compile(r"predict:([a-z][a-z0-9_]*|\*)|push:([a-z][a-z0-9_.]*|\*)|feedback|read|admin")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,99}")
_ID_BYTES, _SECRET_BYTES = 6, 32
_LOOK_S = 1.0
_LOOK_FOR_NEW_S = 0.05
"""Where nobody knows a key it may have been made this moment."""
_LOCK_WAIT_S = 30.0
_MAX_KNOWN = 10_000


class ApiKey(Record):
    """What is kept of a key."""

    id: str
    name: str
    """Whose it is, or what for."""
    sha256: str
    """Of the secret: 256 random bits, which nobody finds by trying."""
    scopes: tuple[str, ...]
    created: datetime
    expires: datetime | None
    revoked: datetime | None = None
    max_requests_per_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """At each replica; None: no limit but the replica's own."""

    def state(self, now: datetime) -> Literal["valid", "expired", "revoked"]:
        """Say whether it opens anything."""
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and now >= self.expires else "valid"


class _Keys(Record):
    format: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()


def keys_file(settings: Settings) -> Path:
    """Where the keys are."""
    return settings.storage_path / "access" / "api_keys.json"


def create(
    settings: Settings,
    name: str,
    scopes: Sequence[str],
    *,
    valid_for: timedelta | None,
    max_requests_per_s: float | None = None,
) -> tuple[ApiKey, str]:
    """Make a key.

    Args:
        settings: whose storage.
        name: whose key it is, or what for.
        scopes: what it opens; see `SCOPES`.
        valid_for: from now on; None: until it is revoked.
        max_requests_per_s: at each replica; None: no limit.

    Returns:
        The key, and the token to send: shown once, and kept nowhere.

    Raises:
        UserError: a name or a scope that cannot be one.
        ForbiddenError: the role of whoever acts does not have it.
    """
    check_may(settings, "manage keys")
    return _create(
        settings, name, scopes, valid_for=valid_for, max_requests_per_s=max_requests_per_s
    )


def _create(
    settings: Settings,
    name: str,
    scopes: Sequence[str],
    *,
    valid_for: timedelta | None = None,
    max_requests_per_s: float | None = None,
) -> tuple[ApiKey, str]:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"a key cannot be named {name!r}",
            allowed="up to 100 letters, digits, spaces and . _ @ -",
        )
    wrong = [scope for scope in scopes if not _SCOPE.fullmatch(scope)]
    if wrong or not scopes:
        raise UserError(f"the scope {wrong[0]!r}" if wrong else "no scope", allowed=SCOPES)
    secret = secrets.token_urlsafe(_SECRET_BYTES)
    now = datetime.now(UTC)
    made = ApiKey(
        id=secrets.token_hex(_ID_BYTES),
        name=name,
        sha256=_digest(secret.encode()),
        scopes=tuple(dict.fromkeys(scopes)),
        created=now,
        expires=None if valid_for is None else now + valid_for,
        max_requests_per_s=max_requests_per_s,
    )
    with _locked(settings):
        facts = {"name": name, "scopes": " ".join(made.scopes)}
        audit.append(settings, "api_key.create", made.id, facts)
        _write(settings, (*list_keys(settings), made))
    return made, f"{made.id}.{secret}"


def revoke(settings: Settings, key_id: str) -> ApiKey:
    """Let a key open nothing any more; a second call changes nothing.

    Raises:
        NotFoundError: there is no such key; the nearest is offered.
        ForbiddenError: the role of whoever acts does not have it.
    """
    check_may(settings, "manage keys")
    with _locked(settings):
        keys = {key.id: key for key in list_keys(settings)}
        if key_id not in keys:
            raise unknown_name("API key", key_id, keys)
        key = keys[key_id]
        if key.revoked is None:
            key = key.model_copy(update={"revoked": datetime.now(UTC)})
            audit.append(settings, "api_key.revoke", key_id, {"name": key.name})
            _write(settings, tuple((keys | {key_id: key}).values()))
    return key


def own_token(settings: Settings) -> str:
    """Give what this installation's own commands send: the key that is set, or one of their own.

    It is made on first use; empty where no key is asked for.
    """
    if given := settings.serving.api_key.get_secret_value():
        return given
    if not settings.serving.require_key:
        return ""
    file = keys_file(settings).with_name("own.token")
    # Two first users must not leave a key that opens all and that nobody knows.
    with _locked(settings, "own-token"):
        if not file.exists():
            # Whoever acts: it shows nothing to people, and deploys wait by it.
            _, token = _create(settings, "penstock itself", [ADMIN])
            write_whole(file, token.encode(), mode=0o600)
        return file.read_text()


def list_keys(settings: Settings) -> tuple[ApiKey, ...]:
    """Every key, the oldest first.

    Raises:
        IntegrityError: the file is damaged.
    """
    file = keys_file(settings)
    try:
        return _Keys.model_validate_json(file.read_bytes()).keys
    except FileNotFoundError:
        return ()
    except ValidationError:
        raise IntegrityError(
            f"{file} is damaged, so no key opens anything",
            next_step="restore it from a backup, or move it away and make new keys",
        ) from None


def allows(scopes: Sequence[str], wanted: str) -> bool:
    """Say whether one of the scopes opens what is wanted; admin opens all."""
    kind, _, _ = wanted.partition(":")
    return any(scope in (wanted, f"{kind}:*", ADMIN) for scope in scopes)


class Gatekeeper:
    """Says of each request whether its key opens what it asks for; a replica has one."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Prepare; nothing is read where the settings ask for no key."""
        self._is_open = not settings.serving.require_key
        self._file = keys_file(settings)
        self._settings = settings
        self._clock = clock
        self._now = now
        self._looked_s = float("-inf")
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, ApiKey] = {}
        # Who was let in before; a digest a request would cost more than all else here.
        self._known: dict[bytes, ApiKey] = {}
        self._limits: OrderedDict[str, RateLimit] = OrderedDict()
        self._bearers = None
        if settings.serving.jwt.issuer is not None:
            from penstock.serving.bearer import BearerTokens

            self._bearers = BearerTokens(settings.serving.jwt, _SCOPE.fullmatch)

    def check(self, headers: Sequence[tuple[bytes, bytes]], wanted: str) -> str | None:
        """Let a request pass, or refuse it before its body is read.

        Returns:
            The id of its key, or `jwt:<subject>`; None where none is asked for.

        Raises:
            RequestError: 401 without a valid key, 403 where that does not open what is wanted, 429
                beyond its rate, 503 where nobody can say whether a token is good.
        """
        if self._is_open:
            return None
        token = _token(headers)
        # A secret has no dot.
        if self._bearers is not None and token.count(b".") == 2:
            visitor = self._bearers.visitor(token)
            per_s = self._settings.serving.jwt.max_requests_per_s
            return self._let_in(visitor.id, visitor.scopes, wanted, per_s)
        self._look(_LOOK_S)
        key = self._known.get(token) or self._find(token)
        if key is None and self._look(_LOOK_FOR_NEW_S):
            key = self._find(token)
        if key is None:
            raise RequestError(
                401, "unauthorized", "send a valid key: Authorization: Bearer <id>.<secret>"
            )
        state = key.state(self._now())
        if state != "valid":
            raise RequestError(401, "unauthorized", f"this key is {state}")
        return self._let_in(key.id, key.scopes, wanted, key.max_requests_per_s)

    def _let_in(self, key_id: str, scopes: Sequence[str], wanted: str, per_s: float | None) -> str:
        if not allows(scopes, wanted):
            raise RequestError(403, "forbidden", f"this key does not open {wanted}")
        if per_s is not None:
            self._check_rate(key_id, per_s)
        return key_id

    def _check_rate(self, key_id: str, per_s: float) -> None:
        limit = self._limits.get(key_id)
        if limit is None or limit.per_s != per_s:
            limit = self._limits[key_id] = RateLimit(per_s)
            if len(self._limits) > _MAX_KNOWN:
                self._limits.popitem(last=False)
        self._limits.move_to_end(key_id)
        wait_s = limit.wait_s(self._clock())
        if wait_s > 0:
            raise RequestError(
                429,
                "too_many_requests",
                f"this key may send {per_s:g} requests a second",
                retry_after_s=math.ceil(wait_s),
            )

    def _find(self, token: bytes) -> ApiKey | None:
        key_id, _, secret = token.partition(b".")
        key = self._keys.get(key_id.decode("latin-1"))
        if key is None or not hmac.compare_digest(_digest(secret), key.sha256):
            return None
        if len(self._known) < _MAX_KNOWN:
            self._known[token] = key
        return key

    def _look(self, after_s: float) -> bool:
        """Read the keys anew where their file has changed; say whether there are others now.

        Args:
            after_s: not so soon after the last look.
        """
        now_s = self._clock()
        if now_s - self._looked_s < after_s:
            return False
        self._looked_s = now_s
        try:
            found = self._file.stat()
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp == self._stamp:
                return False
            self._keys = {key.id: key for key in list_keys(self._settings)}
            self._stamp = stamp
        except (OSError, IntegrityError):
            self._keys, self._stamp = {}, None
        self._known = {}
        return True


def _token(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    for name, value in headers:
        if name == b"authorization":
            kind, _, token = value.partition(b" ")
            return token.strip() if kind.lower() == b"bearer" else b""
        if name == b"x-api-key":
            return value
    return b""


def _digest(secret: bytes) -> str:
    return hashlib.sha256(secret).hexdigest()


def _locked(settings: Settings, what: str = "api-keys") -> AbstractContextManager[None]:
    file = settings.storage_path / "locks" / f"{what}.lock"
    return exclusive(file, what="the keys", wait_s=_LOCK_WAIT_S)


def _write(settings: Settings, keys: tuple[ApiKey, ...]) -> None:
    file = keys_file(settings)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.parent.chmod(0o700)
    content = orjson.dumps(_Keys(keys=keys).model_dump(mode="json"), option=orjson.OPT_INDENT_2)
    write_whole(file, content, mode=0o600)
