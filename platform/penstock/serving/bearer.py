"""Tokens of an identity provider: a JWT is held against its issuer's keys and becomes scopes.

A token that was good stays good until it expires or the issuer's keys change, so the second request
of a caller costs a hash and not a signature.
"""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jwt

from penstock.access_settings import JwtSettings
from penstock.errors import RequestError
from penstock.roles import ROLES, SCOPES
from penstock.serving.jwks import ALGORITHMS, KeySet, KeySource

LEEWAY_S = 10.0
"""How far two clocks may be apart."""
_MAX_TOKEN_BYTES = 8192
_MAX_KNOWN = 10_000
_MAX_SUBJECT_CHARS = 200
_REQUIRED = ["exp", "iss", "aud", "sub"]


@dataclass(frozen=True)
class Visitor:
    """Who a good token speaks for."""

    id: str
    """`jwt:<subject>`."""
    scopes: tuple[str, ...]
    expires_s: float
    """Unix time; leeway included."""
    key_set: KeySet
    """Against which the token was verified."""


class BearerTokens:
    """Says of each token who it speaks for; a replica has one."""

    def __init__(
        self,
        settings: JwtSettings,
        is_scope: Callable[[str], Any],
        *,
        source: KeySource | None = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; the issuer's keys are read in the background.

        Args:
            settings: whose tokens are taken.
            is_scope: says whether a text is a scope of ours; others are the issuer's own business.
            source: of the issuer's keys.
            now_s: Unix time.
        """
        self._settings = settings
        self._is_scope = is_scope
        self._source = source or KeySource(settings)
        self._now_s = now_s
        self._known: OrderedDict[bytes, Visitor] = OrderedDict()

    def visitor(self, token: bytes) -> Visitor:
        """Verify a token, or know it again.

        Raises:
            RequestError: 401 where it is not good, 503 where nobody can say: no key of the issuer
                is known.
        """
        key_set = self._source.current()
        if key_set is None:
            raise RequestError(503, "unavailable", "the issuer's keys can't be read now; try again")
        if len(token) > _MAX_TOKEN_BYTES:
            raise _refused("too long")
        digest = hashlib.sha256(token).digest()
        known = self._known.get(digest)
        if known is not None and known.key_set is key_set:
            if self._now_s() >= known.expires_s:
                del self._known[digest]
                raise _refused("expired")
            self._known.move_to_end(digest)
            return known
        made = self._verify(token, key_set)
        self._known[digest] = made
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return made

    def _verify(self, token: bytes, key_set: KeySet) -> Visitor:
        try:
            header = jwt.get_unverified_header(token)
            algorithm, kid = header.get("alg"), header.get("kid")
        except Exception:  # noqa: BLE001 - strangers' bytes may raise what they like
            raise _refused("not readable") from None
        if algorithm not in ALGORITHMS or "crit" in header:
            raise _refused(f"not signed with {', '.join(ALGORITHMS)}")
        key = key_set.keys.get((kid, algorithm)) if isinstance(kid, str) else None
        if key is None:
            self._source.want()
            raise _refused("signed with a key that is not known")
        claims = self._claims(token, key, algorithm)
        subject = claims["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= _MAX_SUBJECT_CHARS:
            raise _refused("without a subject")
        return Visitor(
            id=f"jwt:{subject}",
            scopes=tuple(dict.fromkeys(self._scopes(claims))),
            expires_s=float(claims["exp"]) + LEEWAY_S,
            key_set=key_set,
        )

    def _claims(self, token: bytes, key: Any, algorithm: str) -> Mapping[str, Any]:
        """Read the claims of a token that is signed, of this issuer, for us, and in its time."""
        try:
            return jwt.decode(
                token,
                key,
                # The key's own, not the header's word: see `KeySet`.
                algorithms=[algorithm],
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=LEEWAY_S,
                options={"require": _REQUIRED},
            )
        except jwt.ExpiredSignatureError:
            raise _refused("expired") from None
        except jwt.ImmatureSignatureError:
            raise _refused("not valid yet") from None
        except jwt.InvalidIssuerError:
            raise _refused("of another issuer") from None
        except jwt.InvalidAudienceError:
            raise _refused("for another audience") from None
        except jwt.MissingRequiredClaimError as error:
            raise _refused(f"without {error.claim}") from None
        except Exception:  # noqa: BLE001 - strangers' bytes may raise what they like
            raise _refused("not valid") from None

    def _scopes(self, claims: Mapping[str, Any]) -> Iterable[str]:
        for name in ("scope", "scp"):
            yield from (each for each in _texts(claims.get(name)) if self._is_scope(each))
        for role in ROLES:
            if role in _texts(_claim(claims, self._settings.roles_claim)):
                yield from SCOPES[role]


def _refused(what: str) -> RequestError:
    return RequestError(401, "unauthorized", f"this token is {what}")


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """Find a claim by its name, or by its path: Keycloak's is `realm_access.roles`."""
    if name in claims:
        return claims[name]
    first, _, rest = name.partition(".")
    inner = claims.get(first)
    return _claim(inner, rest) if rest and isinstance(inner, Mapping) else None


def _texts(value: Any) -> list[str]:
    """Read a list of texts, or one text of several words (RFC 6749, section 3.3)."""
    if isinstance(value, str):
        return value.split()
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
