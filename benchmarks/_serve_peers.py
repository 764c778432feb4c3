"""The peers of benchmarks/serve.py, each a process of its own: `fastapi`, `serve` and `bare`.

Both are what a team writes by hand from the parts' own tutorials: Feast's SDK for the features, an
MLflow pyfunc for the model, FastAPI with a pydantic body. One behind uvicorn, one on Ray Serve with
every default as it comes. The third is FastAPI with nothing but the graph.
"""

import argparse
import math
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

PROJECT = "hand_glued"
VIEWS = {"customer": "CUSTOMER_ID", "terminal": "TERMINAL_ID"}


class Payment(BaseModel):
    CUSTOMER_ID: int
    TERMINAL_ID: int
    TX_DATETIME: datetime
    TX_AMOUNT: float


class Payments(BaseModel):
    rows: list[Payment]


class HandGlued:
    """Looks features up with Feast's SDK and predicts with MLflow's pyfunc."""

    def __init__(self, repo: str, model: str, features: list[str]):
        import mlflow
        from feast import FeatureStore

        self.store = FeatureStore(repo_path=repo)
        self.model = mlflow.pyfunc.load_model(model)
        self.features = features
        self.looked_up = [
            f"{view.name}:{field.name}"
            for view in self.store.list_feature_views()
            for field in view.features
        ]

    def predict(self, payments: Payments) -> dict[str, Any]:
        import numpy as np
        import pandas as pd

        rows = payments.rows
        found = self.store.get_online_features(
            features=self.looked_up,
            entity_rows=[
                {"CUSTOMER_ID": r.CUSTOMER_ID, "TERMINAL_ID": r.TERMINAL_ID} for r in rows
            ],
        ).to_dict()
        found["TX_AMOUNT"] = [r.TX_AMOUNT for r in rows]
        found["TX_DURING_WEEKEND"] = [int(r.TX_DATETIME.weekday() >= 5) for r in rows]
        found["TX_DURING_NIGHT"] = [int(r.TX_DATETIME.hour <= 6) for r in rows]
        # A frame from one array: from a dict of 15 lists it takes as long as everything else.
        values = np.array([found[name] for name in self.features], dtype=np.float64).T
        scores = self.model.predict(pd.DataFrame(values, columns=self.features))
        return {"predictions": [{"score": score} for score in scores.tolist()]}


def write_repo(folder: Path, frames: dict[str, Any], redis: str | None) -> Path:
    """A plain Feast repo with the same rows as Penstock's online store, written by Feast."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64

    folder.mkdir(parents=True)
    online = (
        f"  type: redis\n  connection_string: {redis}\n"
        if redis
        else f"  type: sqlite\n  path: {folder / 'online.db'}\n"
    )
    (folder / "feature_store.yaml").write_text(
        f"project: {PROJECT}\nprovider: local\nentity_key_serialization_version: 3\n"
        f"registry:\n  path: {folder / 'registry.db'}\n  cache_ttl_seconds: 0\n"
        f"online_store:\n{online}"
    )
    store = FeatureStore(repo_path=str(folder))
    for name, key in VIEWS.items():
        frame = frames[name]
        path = folder / f"{name}.parquet"
        frame.write_parquet(path)
        features = [c for c in frame.columns if c not in (key, "TX_DATETIME")]
        entity = Entity(name=name, join_keys=[key], value_type=ValueType.INT64)
        view = FeatureView(
            name=name,
            entities=[entity],
            schema=[Field(name=feature, dtype=Float64) for feature in features],
            source=FileSource(path=str(path), timestamp_field="TX_DATETIME"),
        )
        store.apply([entity, view])
        store.write_to_online_store(name, frame.to_pandas())
    return folder


def write_model(folder: Path, bundle: Path) -> Path:
    """The run's native model as an MLflow pyfunc."""
    import mlflow

    class Native(mlflow.pyfunc.PythonModel):
        def load_context(self, context: Any) -> None:
            from penstock.training.bundle import load_native

            self.score = load_native(Path(context.artifacts["bundle"]))

        def predict(self, context: Any, model_input: Any) -> Any:
            return self.score(model_input.to_numpy())

    mlflow.pyfunc.save_model(
        folder, python_model=Native(), artifacts={"bundle": str(bundle)}, pip_requirements=[]
    )
    return folder


def same_score(mine: float, theirs: float) -> bool:
    return math.isclose(mine, theirs, abs_tol=1e-5)


def run_fastapi(arguments: argparse.Namespace) -> None:
    import uvicorn
    from fastapi import FastAPI

    glued = HandGlued(arguments.repo, arguments.model, arguments.features.split(","))
    app = FastAPI()

    @app.post("/predict")
    async def predict(payments: Payments) -> dict[str, Any]:
        return glued.predict(payments)

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, access_log=False, log_level="warning")


def run_bare(arguments: argparse.Namespace) -> None:
    import numpy as np
    import onnxruntime
    import uvicorn
    from fastapi import FastAPI

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(arguments.graph, options)
    wanted = session.get_inputs()[0].name

    class Rows(BaseModel):
        rows: list[list[float]]

    app = FastAPI()

    @app.post("/predict")
    async def predict(given: Rows) -> dict[str, Any]:
        (scores,) = session.run(None, {wanted: np.array(given.rows)})
        return {"predictions": [{"score": score} for score in scores.tolist()]}

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, access_log=False, log_level="warning")


def run_serve(arguments: argparse.Namespace) -> None:
    import signal

    import ray
    from fastapi import FastAPI
    from ray import serve

    app = FastAPI()

    @serve.deployment
    @serve.ingress(app)
    class Defaults:
        def __init__(self, repo: str, model: str, features: list[str]):
            self.glued = HandGlued(repo, model, features)

        # Async like the other. Serve lets 5 requests at a replica, whose loop this handler holds
        # for milliseconds; with more connections than that its router backs off ever longer.
        @app.post("/predict")
        async def predict(self, payments: Payments) -> dict[str, Any]:
            return self.glued.predict(payments)

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": arguments.port})
    features = arguments.features.split(",")
    serve.run(Defaults.bind(arguments.repo, arguments.model, features), route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=("fastapi", "serve", "bare"))
    for name in ("--repo", "--model", "--graph", "--features"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()
    run = {"fastapi": run_fastapi, "serve": run_serve, "bare": run_bare}[arguments.peer]
    run(arguments)


if __name__ == "__main__":
    main()
