from dataclasses import replace

import numpy as np
import pytest
from onnx import TensorProto, helper

from bundles import FEATURES, native_score, write_bundle
from penstock.errors import IntegrityError, UserError
from penstock.handover import ServingPolicy
from penstock.registry.package import MODEL_FILE, VerifiedPackage, read_bundle, seal, verify
from penstock.serving.predictor import Predictor
from penstock.settings import Settings


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> VerifiedPackage:
    folder = tmp_path_factory.mktemp("project")
    settings = Settings(project_root=folder)
    into = settings.models_path / "spills" / "1"
    bundle = write_bundle(folder / "bundle")
    seal(read_bundle(bundle, model="spills"), into, settings, version=1, card="# Spills")
    return verify(into, settings)


def with_graph(package: VerifiedPackage, graph: bytes) -> VerifiedPackage:
    return replace(package, files={**package.files, MODEL_FILE: graph})


def one_node_graph(
    node: str, *, dtype: int = TensorProto.DOUBLE, width: object = "F", output: str = "score"
) -> bytes:
    """A graph of one node from `features` to an output."""
    graph = helper.make_graph(
        [helper.make_node(node, ["features"], [output])],
        "one",
        [helper.make_tensor_value_info("features", dtype, ["n", width])],
        [helper.make_tensor_value_info(output, dtype, ["n", width])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


class TestPredict:
    def test_scores_are_those_of_the_native_model(self, package: VerifiedPackage):
        rows = np.random.default_rng(0).normal(50, 40, (64, len(FEATURES)))
        rows[3, 1] = np.nan
        scores = Predictor(package).predict(rows)
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores, native_score(rows), atol=1e-6)

    def test_a_row_scores_the_same_alone_and_in_a_batch(self, package: VerifiedPackage):
        rows = np.random.default_rng(1).normal(50, 40, (8, len(FEATURES)))
        predictor = Predictor(package)
        alone = [predictor.predict(row[None])[0] for row in rows]
        np.testing.assert_allclose(predictor.predict(rows), alone, atol=1e-7)

    def test_columns_that_are_not_contiguous_are_read_right(self, package: VerifiedPackage):
        rows = np.random.default_rng(2).normal(50, 40, (8, len(FEATURES)))
        np.testing.assert_array_equal(
            Predictor(package).predict(np.asfortranarray(rows)), Predictor(package).predict(rows)
        )

    def test_a_good_model_passes_the_golden_row(self, package: VerifiedPackage):
        Predictor(package).check_golden_row()


class TestWhatIsRefused:
    def test_bytes_that_are_no_graph(self, package: VerifiedPackage):
        with pytest.raises(IntegrityError, match="does not load"):
            Predictor(with_graph(package, b"no graph"))

    def test_a_graph_of_another_input_type(self, package: VerifiedPackage):
        graph = one_node_graph("Identity", dtype=TensorProto.FLOAT)
        with pytest.raises(IntegrityError, match=r"takes .*tensor\(float\)"):
            Predictor(with_graph(package, graph))

    def test_a_graph_of_another_width(self, package: VerifiedPackage):
        with pytest.raises(IntegrityError, match="takes 7 features, not 3"):
            Predictor(with_graph(package, one_node_graph("Identity", width=7)))

    def test_a_graph_without_a_score(self, package: VerifiedPackage):
        with pytest.raises(IntegrityError, match="no output score"):
            Predictor(with_graph(package, one_node_graph("Identity", output="other")))

    def test_a_graph_that_gives_nan_for_missing_values_is_not_ready(self, package: VerifiedPackage):
        graph = helper.make_graph(
            [helper.make_node("ReduceMax", ["features"], ["score"], axes=[1], keepdims=0)],
            "largest",
            [helper.make_tensor_value_info("features", TensorProto.DOUBLE, ["n", 3])],
            [helper.make_tensor_value_info("score", TensorProto.DOUBLE, ["n"])],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        predictor = Predictor(with_graph(package, model.SerializeToString()))
        with pytest.raises(IntegrityError, match="without features"):
            predictor.check_golden_row()


class TestGpu:
    @pytest.fixture
    def on_gpu(self, package: VerifiedPackage) -> VerifiedPackage:
        policy = ServingPolicy(num_gpus_per_replica=1)
        return replace(package, signature=package.signature.model_copy(update={"serving": policy}))

    def test_without_a_cuda_provider_it_refuses_and_says_what_to_install(self, on_gpu):
        import onnxruntime

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has CUDA")
        with pytest.raises(UserError, match=r"has no CUDA provider.*onnxruntime-gpu\[cuda,cudnn\]"):
            Predictor(on_gpu)

    def test_a_provider_that_does_not_start_is_no_reason_to_take_the_cpu(self, on_gpu, monkeypatch):
        import onnxruntime

        # As a build with CUDA says where there is no GPU: it has the provider, and warns.
        told = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: told)
        with (
            pytest.warns(UserWarning, match="CUDAExecutionProvider"),
            pytest.raises(UserError, match="it does not start"),
        ):
            Predictor(on_gpu)
