"""Structured logs on stderr: results own stdout."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote, unquote_plus

import structlog

# Up to the last @: what was not encoded as it should (/, #, ?, @) stands in the password too.
_URL_PASSWORD = re.compile(r"(?<=://)([^:@\s]*):\S+@")
_HIDDEN_KEYS = r"\w*(?:password|passwd|passphrase|pwd|secret|token|api_?key|access_?key)"
_SECRET_VALUE = re.compile(rf"\b({_HIDDEN_KEYS})=[^\s&,;'\"]+", re.IGNORECASE)


def redact(text: str, url: str = "") -> str:
    """Hide the passwords in a text: database URLs end up in errors and logs.

    Args:
        text: what will be shown.
        url: where the text is about one URL: its secrets are hidden wherever they stand alone.
    """
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _SECRET_VALUE.sub(r"\1=***", _URL_PASSWORD.sub(r"\1:***@", text))


def shown_url(url: str) -> str:
    """Give a URL as it may be shown: host, path and options, never a password."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return redact(make_url(url).render_as_string(hide_password=True))
    except (ArgumentError, ValueError):
        return f"{url.partition(':')[0]}:…"


def _secrets(url: str) -> set[str]:
    found = re.match(r"[^:/]+://[^:@]*:(.*)@", url)
    password = found.group(1) if found else ""
    # A database's driver speaks of the parts that it took a malformed URL for.
    parts = {password, unquote(password), *re.split("[@:]", password)}
    keys = re.findall(rf"[?&]{_HIDDEN_KEYS}=([^&]+)", url, re.IGNORECASE)
    return (parts | {*keys, *map(unquote_plus, keys)}) - {""}


def _redact_event(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    return {k: redact(v) if isinstance(v, str) else v for k, v in event.items()}


def configure(*, as_json: bool = False, level: int = logging.INFO) -> None:
    """Send structlog's events to stderr, as lines for people or as JSON for machines."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _redact_event,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
