"""Estimators as a user writes them in a feature repo."""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures


def curved(degree: int = 2, strength: float = 1.0) -> Pipeline:
    """A linear model on products of the columns."""
    return make_pipeline(PolynomialFeatures(degree), LogisticRegression(C=strength))


class Middle:
    """Scores every row with the share of positives; scikit-learn's converter does not know it."""

    def fit(self, _columns: Any, labels: Any) -> "Middle":
        self.share = float(np.mean(labels))
        return self

    def predict_proba(self, columns: Any) -> Any:
        return np.tile([1.0 - self.share, self.share], (len(columns), 1))


class WrittenMiddle(Middle):
    """The same, with a graph of its own."""

    off = 0.0

    def to_onnx(self, num_features: int) -> Any:
        from onnx import TensorProto, helper

        floats = TensorProto.FLOAT
        return helper.make_model(
            helper.make_graph(
                [
                    helper.make_node("ReduceSum", ["scaled", "columns"], ["sums"], keepdims=0),
                    helper.make_node("Mul", ["sums", "nothing"], ["zeros"]),
                    helper.make_node("Add", ["zeros", "share"], ["score"]),
                ],
                "middle",
                [helper.make_tensor_value_info("scaled", floats, ["n", num_features])],
                [helper.make_tensor_value_info("score", floats, ["n"])],
                [
                    helper.make_tensor("columns", TensorProto.INT64, [1], [1]),
                    helper.make_tensor("nothing", floats, [], [0.0]),
                    helper.make_tensor("share", floats, [], [self.share + self.off]),
                ],
            ),
            opset_imports=[helper.make_opsetid("", 18)],
            ir_version=8,
        )


class MiswrittenMiddle(WrittenMiddle):
    """Its graph says something else than it does."""

    off = 0.01
