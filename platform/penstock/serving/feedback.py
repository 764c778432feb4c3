"""The route that takes the truth: `POST /v1/feedback`.

Feedback is durable before it is answered, and moves into its table when somebody looks:
`penstock feedback show`.
"""

import threading
from datetime import UTC, datetime
from pathlib import Path

import orjson

from penstock.errors import NotFoundError, PenstockError, RequestError
from penstock.serving import http
from penstock.serving.feedback_bodies import microseconds, read_feedback
from penstock.serving.feedback_target import (
    FeedbackTarget,
    feedback_table,
    newest_package,
    target_of,
)
from penstock.serving.intake import Intake, Readable
from penstock.settings import Settings

PATH = "/v1/feedback"


class FeedbackIntake(Intake):
    """Checks bodies of feedback and appends them to the log of pushed events."""

    def __init__(self, settings: Settings) -> None:
        """Prepare; packages and the log are opened by the first feedback."""
        super().__init__(settings, moved_by="their table: `penstock feedback show`")
        self._targets: dict[Path, FeedbackTarget] = {}
        self._loading = threading.Lock()

    async def answer(
        self, scope: http.Scope, receive: http.Receive, key_id: str | None
    ) -> http.Answer:
        """Answer a request; `key_id` is whose key it bears, where keys are asked for."""
        source = "http" if key_id is None else f"http:{key_id}"

        def read(body: bytes, _kind: bytes) -> Readable:
            now = datetime.now(UTC)
            found = read_feedback(body, self._target, now=now)
            added = {"received_at_us": microseconds(now), "source": source}
            return Readable(
                table=feedback_table(found.target.use_case),
                events=[orjson.dumps(row | added) for row in found.rows],
                receipt={"model": found.target.model},
            )

        return await self.take(scope, receive, read)

    def _target(self, model: str) -> FeedbackTarget:
        """Find what is known of a model.

        Raises:
            RequestError: 404 where no version of it was registered, 503 where it cannot be read.
        """
        try:
            package = newest_package(self._settings, model)
        except NotFoundError:
            raise RequestError(
                404, "unknown_model", f"no model named {model[:100]!a} is registered"
            ) from None
        try:
            with self._loading:
                if package not in self._targets:
                    self._targets[package] = target_of(self._settings, package)
                return self._targets[package]
        except PenstockError as error:
            http.logger.error("feedback of %a cannot be checked: %s", model, error)
            raise RequestError(
                503, "model_unreadable", "the model's package cannot be read; it is logged"
            ) from None
