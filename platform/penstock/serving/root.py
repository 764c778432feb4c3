"""The application at `/`: is the server alive, are the models ready, what do the metrics say.

It takes pushed events too, which need no model, and feedback, whose model may be gone by then.
Whatever nobody else answers ends here, so that an unknown model is a 404 in JSON.
"""

import asyncio
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from importlib.metadata import version
from typing import Any

import orjson
import ray

from penstock.errors import RequestError
from penstock.serving import http
from penstock.serving.api_keys import FEEDBACK, READ, Gatekeeper
from penstock.serving.client import open_directly
from penstock.serving.events import EventIntake, table_of
from penstock.serving.feedback import PATH as FEEDBACK_PATH
from penstock.serving.feedback import FeedbackIntake
from penstock.serving.last_known import LastKnown
from penstock.serving.open_inference import EXTENSIONS
from penstock.serving.served_models import HEAD_TIMEOUT_S, ServedModels
from penstock.settings import load_settings

_METRICS_KEPT = re.compile(rb"(?:# (?:HELP|TYPE) )?ray_(?:penstock|serve)_")
_NODES_AGE_S = 0.5
_METRICS_TIMEOUT_S = 5.0
_MAX_SCRAPES_AT_ONCE = 16
_SILENT_NODES = b"ray_penstock_silent_nodes"


class Root:
    """Answers health, metrics and the models; takes events and feedback; 404 for all else."""

    def __init__(self, *_beside: object) -> None:
        """Prepare; nothing is loaded. Serve starts what else it is built with."""
        settings = load_settings()
        self._served = ServedModels(settings)
        self._nodes = LastKnown(_node_urls, age_s=_NODES_AGE_S, timeout_s=HEAD_TIMEOUT_S)
        self._gatekeeper = Gatekeeper(settings)
        http.answer_to(settings.serving.public_names)
        self._events = EventIntake(settings)
        self._feedback = FeedbackIntake(settings)

    def __serve_build_asgi_app__(self) -> http.AsgiApp:
        """Hand Serve the plain ASGI application."""
        return http.AsgiApp(self.handle)

    async def handle(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Answer one request."""
        await http.send_answer(send, await http.answer_safely(self._answer, scope, receive))

    async def _answer(self, scope: http.Scope, receive: http.Receive) -> http.Answer:
        path = scope["path"]
        table = table_of(path)
        is_feedback = path == FEEDBACK_PATH
        wanted = FEEDBACK if is_feedback else READ if table is None else f"push:{table}"
        key_id = self._gatekeeper.check(scope["headers"], wanted)
        if table is not None:
            return await self._events.answer(table, scope, receive)
        if is_feedback:
            return await self._feedback.answer(scope, receive, key_id)
        handlers = {
            "/healthz": self._health,
            "/readyz": self._ready,
            "/metrics": self._metrics,
            "/v1/models": self._served.answer,
            "/v2": self._describe,
            "/v2/health/live": self._health,
            "/v2/health/ready": self._ready,
        }
        if path not in handlers:
            await http.drain(receive)
            raise _unknown(path)
        if scope["method"] not in ("GET", "HEAD"):
            return http.method_answer(scope["method"], "GET")
        return await handlers[path]()

    async def _describe(self) -> http.Answer:
        parts = {"name": "penstock", "version": version("penstock"), "extensions": EXTENSIONS}
        return http.Answer(status=200, body=orjson.dumps(parts))

    async def _health(self) -> http.Answer:
        return http.Answer(status=200, body=b'{"status":"ok"}')

    async def _ready(self) -> http.Answer:
        applications = await self._served.by_status()
        waiting = [
            f"{name} is {status}" for name, status in applications.items() if status != "RUNNING"
        ]
        if waiting or not applications:
            raise RequestError(503, "not_ready", ", ".join(waiting) or "no model is deployed")
        return http.Answer(status=200, body=orjson.dumps({"ready": True, "models": applications}))

    async def _metrics(self) -> http.Answer:
        text = await asyncio.to_thread(_scrape, await self._nodes.get())
        return http.Answer(status=200, body=text, content_type=b"text/plain; version=0.0.4")


def _unknown(path: str) -> RequestError:
    model, slash, rest = path.removeprefix(http.MODEL_PREFIX).partition("/")
    if path.startswith(http.MODEL_PREFIX) and slash and rest:
        return http.unknown_model(model)
    return http.unknown_path(path)


def _node_urls() -> list[str]:
    """Ask the head where each live node's agent exports its metrics."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray types it not
    return [
        f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        for node in nodes
        if node["Alive"] and node.get("MetricsExportPort")
    ]


def _scrape(urls: Sequence[str]) -> bytes:
    """Collect the serving metrics of these nodes.

    A node that does not answer is left out and counted: it must not hide the others.
    """
    with ThreadPoolExecutor(_MAX_SCRAPES_AT_ONCE) as threads:
        pages = list(threads.map(_read_page, urls))
    # The same HELP and TYPE lines come from each node and may stand once only.
    kept = {line for page in pages for line in page.split(b"\n") if _METRICS_KEPT.match(line)}
    silent = b"%s %d" % (_SILENT_NODES, pages.count(b""))
    lines = [*sorted(kept, key=_family), b"# TYPE %s gauge" % _SILENT_NODES, silent]
    return b"\n".join(lines) + b"\n"


def _read_page(url: str) -> bytes:
    try:
        with open_directly(url, timeout_s=_METRICS_TIMEOUT_S) as page:
            return bytes(page.read())
    except (OSError, HTTPException):
        return b""


def _family(line: bytes) -> tuple[bytes, int]:
    """Order lines by metric, with HELP and TYPE before the samples."""
    words = line.split(b" ", 3)
    if line.startswith(b"#"):
        return words[2], 0 if words[1] == b"HELP" else 1
    name = re.split(rb"[{ ]", line, maxsplit=1)[0]
    return re.sub(rb"_(?:bucket|sum|count)$", b"", name), 2
