"""A model behind keys: what is asked of it, by whom, and what the plain protocol answers."""

import json

import numpy as np

from http_requests import JSON, Reply, send
from penstock.serving import api_keys, server
from penstock.serving.client import predict
from penstock.settings import Settings

MODEL = "asked_with_keys"
ROW = {"CUSTOMER_ID": 1, "TERMINAL_ID": 2, "TX_DATETIME": "2024-04-20T10:00:00Z", "TX_AMOUNT": 12.5}
ROWS = {
    "CUSTOMER_ID": np.array([1, 2, 99_999]),
    "TERMINAL_ID": np.array([2, 3, 4]),
    "TX_DATETIME": np.array(["2024-04-20T10:00:00Z"] * 3, dtype=object),
    "TX_AMOUNT": np.array([12.5, 300.0, 7.0]),
}
PREDICT = f"/v1/models/{MODEL}/predict"


def ask(settings: Settings, token: str | None, path: str = PREDICT, method: str = "POST") -> Reply:
    port = int(server.url(settings).rsplit(":", 1)[1])
    headers = JSON if token is None else {**JSON, "Authorization": f"Bearer {token}"}
    return send(port, path, json.dumps({"rows": [ROW]}), method=method, headers=headers)


def plain(settings: Settings) -> list[dict]:
    """What the plain protocol answers to ROWS."""
    columns = (values.tolist() for values in ROWS.values())
    rows = [dict(zip(ROWS, row, strict=True)) for row in zip(*columns, strict=True)]
    token = api_keys.own_token(settings)
    return predict(server.url(settings), MODEL, json.dumps(rows), token=token)["predictions"]


def make(settings: Settings, *scopes: str) -> str:
    return api_keys.create(settings, "tests", scopes, valid_for=None)[1]
