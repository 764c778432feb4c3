"""Which models are served, and how each one's application does; asked of Serve's controller."""

import orjson
from ray import serve

from penstock.serving import http
from penstock.serving.last_known import LastKnown
from penstock.serving.shared_targets import SHARED_APP, shared_models
from penstock.settings import Settings

_STATUS_AGE_S = 0.5
# A head that is there answers within milliseconds.
HEAD_TIMEOUT_S = 2.0


class ServedModels:
    """Knows them also while the head is gone."""

    def __init__(self, settings: Settings) -> None:
        """Prepare; nothing is asked.

        Args:
            settings: which storage.
        """
        self._settings = settings
        self._known = LastKnown(self._ask, age_s=_STATUS_AGE_S, timeout_s=HEAD_TIMEOUT_S)

    async def by_status(self) -> dict[str, str]:
        """Give each model's status.

        Raises:
            RequestError: 503, the head has not answered yet.
        """
        return await self._known.get()

    async def answer(self) -> http.Answer:
        """List them.

        Raises:
            RequestError: 503, the head has not answered yet.
        """
        return http.Answer(status=200, body=orjson.dumps({"models": await self.by_status()}))

    def _ask(self) -> dict[str, str]:
        states = {
            name: str(application.status.value)
            for name, application in serve.status().applications.items()
            if name != http.ROOT_APP
        }
        shared = states.pop(SHARED_APP, None)
        if shared is not None:
            states |= dict.fromkeys(shared_models(self._settings), shared)
        return states
