"""The route that takes pushed events: `POST /v1/tables/<table>/events`.

An event is durable before it is answered. A stream moves it into its table and online within a
second of that, or when it is started next.
"""

import threading

from penstock.data.contracts import Table, get_table
from penstock.data.events import Push
from penstock.errors import NotFoundError, PenstockError, RequestError
from penstock.features.stream_declarations import load_streams
from penstock.serving import http
from penstock.serving.event_bodies import LINES, read_events
from penstock.serving.intake import Intake, Readable
from penstock.settings import Settings

PREFIX = "/v1/tables/"
_SUFFIX = "/events"


def table_of(path: str) -> str | None:
    """Give the table that a path's events are for; None: the path is another's."""
    name = path.removeprefix(PREFIX).removesuffix(_SUFFIX)
    return name if path == f"{PREFIX}{name}{_SUFFIX}" and name and "/" not in name else None


class EventIntake(Intake):
    """Checks bodies of events and appends them to the log of pushed events."""

    def __init__(self, settings: Settings) -> None:
        """Prepare; declarations and the log are opened by the first event."""
        super().__init__(settings, moved_by="a stream: `penstock features stream`")
        self._tables: dict[str, Table] = {}
        self._loading = threading.Lock()

    async def answer(self, name: str, scope: http.Scope, receive: http.Receive) -> http.Answer:
        """Answer a request for a table's events."""

        def read(body: bytes, kind: bytes) -> Readable:
            events = read_events(body, self._table(name), is_lines=kind in LINES)
            return Readable(table=name, events=events, receipt={"table": name})

        return await self.take(scope, receive, read, LINES)

    def _table(self, name: str) -> Table:
        with self._loading:
            if name not in self._tables:
                self._tables[name] = _find_table(self._settings, name)
            return self._tables[name]


def _find_table(settings: Settings, name: str) -> Table:
    """Find the table whose stream takes pushes.

    Raises:
        RequestError: 404 where there is no such table or stream, 503 where declarations are broken.
    """
    use_case, _, rest = name.partition(".")
    try:
        if not rest or "." in rest:
            raise NotFoundError(f"{name[:100]!a} names no table", allowed="<use case>.<name>")
        table = get_table(settings, name)
        stream = load_streams(settings, use_case).get(name)
    except NotFoundError as error:
        raise RequestError(404, "unknown_table", str(error)) from None
    except PenstockError as error:
        http.logger.error("the declarations of %a cannot be read: %s", use_case, error)
        raise RequestError(
            503, "broken_declarations", "the table's declarations cannot be read; it is logged"
        ) from None
    if stream is None or not any(isinstance(source, Push) for source in stream.sources):
        raise RequestError(
            404, "no_stream", f"no stream of {name} takes pushes; streams.py declares them"
        )
    return table
