"""Explanations at a replica: the rows are looked up here, all else is a process of its own.

It is started by the first request that asks for an explanation and ended when nobody asked for ten
minutes, so who never asks pays nothing. It is as nice as a process can be: predictions go first.
"""

import asyncio
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

import orjson

from penstock.errors import ClusterError, RequestError, StoreEmptyError
from penstock.serving import http
from penstock.serving.arm import Arm
from penstock.serving.explanations import MAX_ROWS, answer, no_explanations
from penstock.serving.metrics import ExplainMetrics
from penstock.serving.requests import RequestParser
from penstock.serving.trial import Trial
from penstock.settings import inherited_environment

ANSWER_WITHIN_S = 60.0
"""From the request to its answer, the start of the process among it."""
_MAX_REQUESTS = 4
"""Taken and not yet answered, at one replica; one more is answered 503."""
_RETRY_AFTER_S = 5
_IDLE_S = 600.0


class ExplainerProcess:
    """The process of one version, started when it is needed. One thread at a time may ask it."""

    def __init__(self, package_path: str, digest: str) -> None:
        """Prepare; nothing is started.

        Args:
            package_path: the version's folder.
            digest: which the package must have.
        """
        self._arguments = (package_path, digest)
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._is_exact = False

    @property
    def pid(self) -> int | None:
        """Its process; None: there is none."""
        return None if self._process is None else self._process.pid

    def ask(self, rows: list[list[float]], *, within_s: float) -> dict[str, Any]:
        """Have rows explained.

        Args:
            rows: as they were looked up; NaN is missing.
            within_s: after that the process is ended.

        Returns:
            `explanations` and `is_exact`.

        Raises:
            RequestError: there is no explanation for these rows.
            TimeoutError: there was none in time.
            ClusterError: the process did not start, or it died.
        """
        deadline_s = time.monotonic() + within_s
        asked = orjson.dumps(rows)
        was_running = self._pipe is not None
        try:
            try:
                document = self._exchange(asked, deadline_s)
            except (EOFError, ConnectionError):
                self.end()
                if not was_running:
                    raise
                # It died since it was asked last.
                document = self._exchange(asked, deadline_s)
        except TimeoutError:
            self.end()
            raise
        except (EOFError, ConnectionError):
            self.end()
            raise ClusterError("the process that explains has died") from None
        if "refused" in document:
            refused = document["refused"]
            raise RequestError(
                refused["status"], refused["code"], refused["message"], path=refused["path"]
            )
        return {**document, "is_exact": self._is_exact}

    def _exchange(self, asked: bytes, deadline_s: float) -> dict[str, Any]:
        pipe = self._started(deadline_s)
        pipe.send_bytes(asked)
        return _receive(pipe, deadline_s)

    def _started(self, deadline_s: float) -> Connection:
        if self._pipe is not None:
            return self._pipe
        ours, theirs = Pipe()
        with theirs:
            descriptor = theirs.fileno()
            command = (sys.executable, "-m", "penstock.serving.explainer_process")
            self._process = subprocess.Popen(
                [*command, str(descriptor), *self._arguments],
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                # What this process runs is what that one must run: a replica's frozen code.
                env={
                    **inherited_environment(),
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
            )
        self._pipe = ours
        ready = _receive(ours, deadline_s)
        if "failed" in ready:
            self.end()
            raise ClusterError(f"the process that explains does not start: {ready['failed']}")
        self._is_exact = bool(ready["is_exact"])
        return ours

    def end(self) -> None:
        """End the process, where there is one."""
        process, self._process = self._process, None
        pipe, self._pipe = self._pipe, None
        if process is not None:
            process.kill()
            process.wait()
        if pipe is not None:
            pipe.close()


def _receive(pipe: Connection, deadline_s: float) -> dict[str, Any]:
    if not pipe.poll(max(deadline_s - time.monotonic(), 0.0)):
        raise TimeoutError
    return dict(orjson.loads(pipe.recv_bytes()))


@dataclass(frozen=True)
class _Side:
    """A version that can be asked, and who explains it; None: it gives no explanations."""

    arm: Arm
    process: ExplainerProcess | None


class Explaining:
    """The paths of a replica that explain: `/explain`, and one for each version by its number."""

    def __init__(self, arm: Arm, trial: Trial | None, *, max_body_bytes: int) -> None:
        """Lay the paths out; nothing is started.

        Args:
            arm: the version that answers.
            trial: the one beside it, during a rollout; it explains what it answers.
            max_body_bytes: of a request.
        """
        route = f"{http.MODEL_PREFIX}{arm.signature.model}"
        self._own = _side(arm)
        self._trial = trial
        self._other = None if trial is None else _side(trial.arm)
        self._named = {
            f"{route}/versions/{side.arm.version}/explain": side
            for side in (self._other, self._own)
            if side is not None
        }
        self.paths = frozenset({f"{route}/explain", *self._named})
        """What is asked by POST."""
        self._parser = RequestParser(
            arm.signature.request_fields,
            feature_names=arm.signature.feature_names,
            max_rows=MAX_ROWS,
            max_body_bytes=max_body_bytes,
        )
        self._max_body_bytes = max_body_bytes
        self._num_requests = 0
        self._metrics: dict[int, ExplainMetrics] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="explain")
        self._idle: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """End what was started."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._end_processes()

    async def answer(
        self, scope: http.Scope, receive: http.Receive, timeout_s: float | None
    ) -> http.Answer:
        """Answer one request to one of the paths; it counts among explanations, not predictions.

        Args:
            scope: of the request.
            receive: gives its body.
            timeout_s: how long the caller waits; None: it does not say.
        """
        found: list[_Side] = [self._named.get(scope["path"], self._own)]

        async def explain(scope: http.Scope, receive: http.Receive) -> http.Answer:
            return await self._explain(scope, receive, timeout_s, found)

        made = await http.answer_safely(explain, scope, receive)
        version = found[0].arm.version
        if version not in self._metrics:
            self._metrics[version] = ExplainMetrics(found[0].arm.signature.model, version)
        return replace(made, metrics=self._metrics[version])

    async def _explain(
        self,
        scope: http.Scope,
        receive: http.Receive,
        timeout_s: float | None,
        found: list[_Side],
    ) -> http.Answer:
        if scope["method"] != "POST":
            return http.method_answer(scope["method"], "POST")
        if self._num_requests >= _MAX_REQUESTS:
            raise RequestError(
                503,
                "overloaded",
                f"{self._num_requests} explanations are in flight; try again in a moment",
                retry_after_s=_RETRY_AFTER_S,
            )
        headers = scope["headers"]
        within_s = min(timeout_s or ANSWER_WITHIN_S, ANSWER_WITHIN_S)
        self._num_requests += 1
        try:
            async with asyncio.timeout(within_s):
                http.check_json(headers)
                body = await http.read_body(headers, receive, max_bytes=self._max_body_bytes)
                rows = self._parser.parse(body)
                is_open = scope["path"] not in self._named
                if is_open and self._trial is not None and self._trial.takes(rows):
                    found[0] = self._other or found[0]
                document = await self._ask(found[0], rows)
        except TimeoutError:
            raise RequestError(
                504, "deadline_exceeded", f"no answer within the {within_s:g} s that were allowed"
            ) from None
        finally:
            self._num_requests -= 1
        return http.Answer(status=200, body=orjson.dumps(document))

    async def _ask(self, side: _Side, rows: list[dict[str, Any]]) -> dict[str, Any]:
        model, version = side.arm.signature.model, side.arm.version
        if side.process is None:
            told = no_explanations(model, version)
            raise RequestError(404, "no_explanations", str(told))
        try:
            values = side.arm.look_up(rows).values.tolist()
        except StoreEmptyError as error:
            raise RequestError(503, "features_absent", str(error)) from None
        self._stay_awake()
        loop = asyncio.get_running_loop()
        # A caller that gives up ends nothing: whoever waits behind would pay for the next start.
        document = await loop.run_in_executor(self._pool, _ask_for, side.process, values)
        return answer(model, version, document["explanations"], is_exact=document["is_exact"])

    def _stay_awake(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        loop = asyncio.get_running_loop()
        # On the thread that asks, so never between a question and its answer.
        self._idle = loop.call_later(_IDLE_S, self._pool.submit, self._end_processes)

    def _end_processes(self) -> None:
        for side in (self._own, self._other):
            if side is not None and side.process is not None:
                side.process.end()


def _side(arm: Arm) -> _Side:
    gives = arm.signature.serving.explanations
    return _Side(arm, ExplainerProcess(arm.package_path, arm.digest) if gives else None)


def _ask_for(process: ExplainerProcess, rows: list[list[float]]) -> dict[str, Any]:
    return process.ask(rows, within_s=ANSWER_WITHIN_S)
