"""The plain HTTP client of a deployed model, for the command line and scripts."""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from penstock.access_settings import is_safe_url
from penstock.errors import (
    BusyError,
    ClusterError,
    NotFoundError,
    PenstockError,
    RequestError,
    UserError,
)
from penstock.serving.requests import FieldLike

_TIMEOUT_S = 30.0
_EXPLAIN_TIMEOUT_S = 90.0
_EXAMPLES = {
    "int64": 1,
    "float64": 12.5,
    "bool": True,
    "string": "text",
    "timestamp": "2018-08-08T10:00:00Z",
}


def open_directly(
    request: str | urllib.request.Request, *, timeout_s: float, ca: str | None = None
) -> Any:
    """Open a URL of this machine or this cluster, which never goes through a company's proxy.

    Over TLS the server's name and certificate are checked, against the PEM file `ca` alone where
    one is given.
    """
    handlers: list[Any] = [urllib.request.ProxyHandler({})]
    url = request if isinstance(request, str) else request.full_url
    if url.startswith("https:"):
        # Reading the system's certificates takes up to half a second.
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca)))
    return urllib.request.build_opener(*handlers).open(request, timeout=timeout_s)


def key_header(token: str) -> dict[str, str]:
    """Give the header that shows an API key; none where there is no key."""
    return {"Authorization": f"Bearer {token}"} if token else {}


def predict(
    url: str,
    model: str,
    text: str,
    *,
    version: int | None = None,
    token: str = "",
    ca: str | None = None,
) -> dict[str, Any]:
    """Send rows to a deployed model.

    Args:
        url: where Serve listens.
        model: the model's name.
        text: JSON: one row, an array of rows, or a whole request with its key `rows`.
        version: the version that must answer; None: whichever is deployed.
        token: an API key; empty: none is asked for.
        ca: a PEM file of the certificates to trust; None: those of the system.

    Raises:
        UserError: the URL would carry the key in the open.
        RequestError: the text is no JSON, or the server refuses it.
        NotFoundError: the model or the version is not served.
        BusyError: the server has too much in flight.
        ClusterError: nothing answers there.
    """
    return _ask(_request(url, model, "predict", text, version, token), ca=ca)


def explain(
    url: str, model: str, text: str, *, version: int | None = None, token: str = ""
) -> dict[str, Any]:
    """Have the scores of rows explained by a deployed model; arguments and errors as `predict`."""
    request = _request(url, model, "explain", text, version, token)
    return _ask(request, timeout_s=_EXPLAIN_TIMEOUT_S)


def _request(
    url: str, model: str, verb: str, text: str, version: int | None, token: str
) -> urllib.request.Request:
    if not is_safe_url(url):
        raise UserError(f"the URL {url!r} is not safe", allowed="https, or http of this machine")
    path = f"/v1/models/{model}" + (f"/versions/{version}" if version else "") + f"/{verb}"
    headers = {"Content-Type": "application/json", **key_header(token)}
    return urllib.request.Request(  # noqa: S310 - our own server
        url + path, data=_as_request(text), headers=headers
    )


def example_body(fields: Sequence[FieldLike]) -> str:
    """Write a request with one row of made-up values, to start from."""
    return json.dumps({"rows": [{field.name: _EXAMPLES[field.dtype] for field in fields}]})


def _as_request(text: str) -> bytes:
    try:
        given = json.loads(text)
    except ValueError as error:
        raise RequestError(400, "unreadable", f"the rows are not JSON: {error}") from None
    # The server is to judge the caller's own text: writing it anew would hide a key given twice.
    if isinstance(given, list):
        text = f'{{"rows":{text}}}'
    elif isinstance(given, dict) and "rows" not in given:
        text = f'{{"rows":[{text}]}}'
    return text.encode("utf-8", errors="surrogatepass")


def _ask(
    request: urllib.request.Request, *, ca: str | None = None, timeout_s: float = _TIMEOUT_S
) -> dict[str, Any]:
    try:
        with open_directly(request, timeout_s=timeout_s, ca=ca) as page:
            return dict(json.load(page))
    except urllib.error.HTTPError as error:
        raise _explain(error) from None
    except OSError as error:
        raise ClusterError(
            f"nothing answers at {request.host}: {error}",
            next_step="run `penstock up`, then `penstock deploy`",
        ) from None
    except ValueError as error:
        raise ClusterError(f"{request.full_url} does not answer in JSON: {error}") from None


def _explain(error: urllib.error.HTTPError) -> PenstockError:
    try:
        document = json.load(error)
        code, message, path = (str(document[key]) for key in ("code", "message", "path"))
    except (ValueError, KeyError, TypeError):
        return ClusterError(f"{error.url} answers {error.code} and no JSON")
    if code == "no_explanations":
        return NotFoundError(message)
    if error.code == 404:
        return NotFoundError(message, next_step="see `penstock status` for what is deployed")
    if code in ("overloaded", "too_many_requests"):
        return BusyError(message, next_step="try again in a moment")
    if error.code >= 500:
        return ClusterError(f"{message} ({error.code} {code})", next_step="try again in a moment")
    return RequestError(error.code, code, f"{message} ({error.code} at {path})", path=path)
