"""Callers of a model who ask about ever new customers, and say later what turned out to be true."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from http_requests import JSON, send

FIRST_CUSTOMER = 1_000
WRONG = 0.1
"""Of a hundred truths ten are not what the amount says."""


@dataclass
class Tellers:
    """What they did."""

    port: int
    model: str
    tell: Callable[[object], int] | None
    """Takes feedback and gives the status; None: the server's own route does."""
    versions: dict[int, set[int]] = field(default_factory=dict)
    """By customer: each asks twice."""
    lost: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell_on(self, number: int, num_threads: int, ended: threading.Event) -> None:
        draw = random.Random(number)
        customer = FIRST_CUSTOMER + number
        while not ended.is_set():
            customer += num_threads
            # One customer's payments are alike, which is why a customer counts once.
            amount = draw.uniform(5, 95)
            rows = [
                {
                    "CUSTOMER_ID": customer,
                    "TERMINAL_ID": terminal,
                    "TX_DATETIME": "2024-04-20T10:00:00Z",
                    "TX_AMOUNT": amount,
                }
                for terminal in (1, 2)
            ]
            told = []
            for row in rows:
                reply = self._send(f"/v1/models/{self.model}/predict", {"rows": [row]})
                if reply is None:
                    continue
                is_true = (amount > 50) != (draw.random() < WRONG)
                (answer,) = reply["predictions"]
                told.append({"prediction_id": answer["prediction_id"], "truth": int(is_true)})
                self.versions.setdefault(customer, set()).add(reply["version"])
            if told:
                self._tell({"model": self.model, "feedback": told})

    def _tell(self, body: object) -> None:
        with self._lock:
            if self.tell is not None:
                if (status := self.tell(body)) != 202:
                    self.lost.append(f"feedback: {status}")
            else:
                self._send("/v1/feedback", body)

    def _send(self, path: str, body: object) -> dict | None:
        try:
            reply = send(self.port, path, json.dumps(body), headers=JSON)
        except OSError as error:
            self.lost.append(f"{type(error).__name__}: {error}")
            return None
        if reply.status not in (200, 202):
            self.lost.append(f"{reply.status}: {reply.body[:200]!r}")
            return None
        return reply.json


@contextmanager
def tellers(
    port: int, model: str, *, tell: Callable[[object], int] | None = None, threads: int = 3
) -> Iterator[Tellers]:
    """Ask and tell from several threads for as long as the block lasts."""
    working = Tellers(port, model, tell)
    ended = threading.Event()
    running = [
        threading.Thread(target=working.tell_on, args=(number, threads, ended), daemon=True)
        for number in range(threads)
    ]
    for thread in running:
        thread.start()
    try:
        yield working
    finally:
        ended.set()
        for thread in running:
            thread.join(70)
