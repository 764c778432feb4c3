import asyncio
from types import SimpleNamespace

from penstock.registry.package import RequestField, Signature
from penstock.serving import http
from penstock.serving.model_server import ModelServer
from penstock.serving.protocols import Protocols, Scored
from penstock.serving.requests import RequestParser

FIELDS = (RequestField(name="amount", dtype="float64"),)
SIGNATURE = Signature(
    model="spills",
    estimator="logistic_regression",
    use_case="dam",
    feature_service="dam_v1",
    feature_names=("amount",),
    request_fields=FIELDS,
    label="SPILLED",
    threshold=None,
)


def protocols(version: int) -> Protocols:
    parser = RequestParser(FIELDS, max_rows=3, max_body_bytes=1 << 20)
    named = {"model": "spills", "version": version, "digest": f"d{version}"}
    return Protocols(**named, signature=SIGNATURE, parser=parser)


class EveryRequest:
    """A version on trial that gets every request, at a share of 100 %."""

    def __init__(self) -> None:
        self.arm = SimpleNamespace(protocols=protocols(2), digest="d2", version=2, metrics=None)

    def takes(self, _rows) -> bool:
        return True

    async def answer(self, _asked) -> Scored:
        import numpy as np

        return Scored(scores=np.array([0.5]), missing=[()])


def test_who_names_the_first_version_is_not_answered_by_the_one_on_trial():
    server = object.__new__(ModelServer)
    server._protocols = protocols(1)

    def tried(path: str) -> http.Answer | None:
        request = ([], b"{}", [{"amount": 1.0}])
        return asyncio.run(server._try(EveryRequest(), f"/v1/models/spills{path}", request, None))

    assert tried("/versions/1/predict") is None
    assert tried("/versions/2/predict").status == 200
    assert b'"version":2' in tried("/predict").body
