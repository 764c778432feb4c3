import asyncio

import pytest

from penstock.serving import http, shortcut


@pytest.fixture(autouse=True)
def _nothing_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "_direct", {})


def who_answers(scope: dict) -> str:
    answered: list[str] = []

    def application(name: str) -> http.AsgiApp:
        async def handle(scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
            answered.append(name)

        return http.AsgiApp(handle)

    shortcut.take(frozenset({"/v1/models/m/predict"}), application("replica"))
    (middleware,) = shortcut.middlewares()
    app = middleware.cls(application("Serve"), *middleware.args, **middleware.kwargs)
    asyncio.run(app(scope, None, None))
    return answered[0]


def test_a_taken_path_goes_straight_to_the_replica():
    assert who_answers({"type": "http", "path": "/v1/models/m/predict"}) == "replica"


def test_every_other_path_goes_to_serve():
    for path in ("/-/healthz", "/v1/models/m", "/v1/models/m/predict/"):
        assert who_answers({"type": "http", "path": path}) == "Serve"


def test_what_is_no_request_goes_to_serve():
    assert who_answers({"type": "websocket", "path": "/v1/models/m/predict"}) == "Serve"


def test_serve_takes_what_it_is_given():
    from ray.serve._private.http_util import validate_http_proxy_callback_return

    assert len(validate_http_proxy_callback_return(shortcut.middlewares())) == 1
