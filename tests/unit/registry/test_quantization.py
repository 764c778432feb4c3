import shutil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from int8_runs import TINY, WIDE, examples, leave_run
from penstock.errors import IntegrityError
from penstock.handover import Int8, ServingPolicy
from penstock.registry.agreement import Agreement
from penstock.registry.card import render_card
from penstock.registry.export import export
from penstock.registry.package import Bundle, seal, verify
from penstock.registry.quantization import BatchLatency, Int8Evidence, judge, quantize
from penstock.scorer import load_scorer
from penstock.settings import Settings
from penstock.training.declarations import XGBoost

ROWS = examples().features
# The wide net is several times as fast in batches; what else runs meanwhile falls on both alike.
PAYS = Int8(max_metric_loss=0.05, min_speedup=1.0, batch_sizes=(256,))
AGREEMENT = Agreement(
    num_rows=100, num_rows_with_blanks=100, max_abs_difference=1e-8, tolerance=1e-5
)


def evidence(
    *, after: float = 0.59, higher_is_better: bool = True, int8_us: tuple[float, ...] = (20.0, 50.0)
) -> Int8Evidence:
    return Int8Evidence(
        num_layers=1,
        num_rows=1_000,
        metric="average_precision" if higher_is_better else "log_loss",
        higher_is_better=higher_is_better,
        float_metric=0.6,
        int8_metric=after,
        max_score_difference=0.01,
        latencies=tuple(
            BatchLatency(num_rows=size, float_us=before, int8_us=us)
            for size, before, us in zip((1, 256), (30.0, 100.0), int8_us, strict=True)
        ),
    )


class TestJudge:
    def test_enough_accuracy_and_enough_speed_at_every_size_is_served(self):
        decision = judge(Int8(max_metric_loss=0.02, min_speedup=1.5), evidence())
        assert decision.is_served
        assert decision.reason == (
            "served in int8: average_precision 0.59 in place of 0.6; "
            "1.50 times as fast for 1 row, 2.00 times as fast for 256 rows"
        )

    def test_a_metric_that_loses_more_is_refused(self):
        decision = judge(Int8(max_metric_loss=0.005), evidence())
        assert not decision.is_served
        assert decision.reason.endswith("0.59 in place of 0.6 loses more than 0.005")

    @pytest.mark.parametrize(("after", "is_served"), [(0.65, False), (0.55, True)])
    def test_where_lower_is_better_a_loss_is_a_rise(self, after: float, is_served: bool):
        given = evidence(after=after, higher_is_better=False)
        assert judge(Int8(max_metric_loss=0.01), given).is_served is is_served

    def test_one_size_that_gains_too_little_is_enough_to_refuse(self):
        decision = judge(Int8(max_metric_loss=1, min_speedup=1.5), evidence(int8_us=(31.0, 10.0)))
        assert not decision.is_served
        assert (
            decision.reason == "not served in int8: 0.97 times as fast for 1 row is below 1.5 times"
        )

    @pytest.mark.parametrize(
        "given", [evidence(after=float("nan")), evidence(int8_us=(float("nan"), 1.0))]
    )
    def test_what_is_no_number_never_passes(self, given: Int8Evidence):
        assert not judge(Int8(max_metric_loss=1e9, min_speedup=1), given).is_served

    def test_a_policy_that_lets_int8_be_slower_is_no_policy(self):
        with pytest.raises(ValidationError, match="min_speedup"):
            Int8(max_metric_loss=0.1, min_speedup=0.9)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Path]:
    folder = tmp_path_factory.mktemp("wide")
    return leave_run(folder, WIDE, PAYS), folder / "run"


def declaring(bundle: Bundle, int8: Int8) -> Bundle:
    """The same run, as if it had declared another policy."""
    signature = bundle.signature.model_copy(update={"serving": ServingPolicy(quantization=int8)})
    return Bundle(files=bundle.files, signature=signature)


class TestQuantize:
    def test_a_wide_net_is_served_in_int8(self, wide):
        bundle, run_folder = wide
        made = quantize(bundle, run_folder, ROWS)
        decided = made.quantization
        assert decided["is_served"], decided
        assert decided["evidence"]["num_layers"] == 2
        assert decided["evidence"]["num_rows"] == 3_000
        assert 0 < decided["evidence"]["max_score_difference"] < 0.1
        assert len(made.onnx) < 0.4 * len(bundle.onnx)
        off = np.abs(load_scorer(made.onnx)(ROWS) - load_scorer(bundle.onnx)(ROWS))
        assert 0 < off.max() < 0.1
        # Nothing else of what the run left has changed.
        same = {name: content for name, content in made.files.items() if name in bundle.files}
        assert {**same, "model.onnx": bundle.onnx} == bundle.files

    def test_a_net_that_may_lose_nothing_is_refused_and_its_float_graph_served(self, wide):
        bundle, run_folder = wide
        strict = Int8(max_metric_loss=0, min_speedup=1.0, batch_sizes=(256,))
        # Ranges from rows that are all alike cut off nearly everything that others bring.
        alike = np.full((100, ROWS.shape[1]), 50.5)
        made = quantize(declaring(bundle, strict), run_folder, alike)
        assert made.onnx == bundle.onnx
        assert not made.quantization["is_served"]
        assert made.quantization["reason"].startswith("not served in int8: roc_auc 0.")
        assert made.quantization["reason"].endswith("loses more than 0")

    def test_a_tiny_net_gains_nothing_and_stays_in_float32(self, tmp_path):
        # No machine makes three of so little.
        asked = Int8(max_metric_loss=1, min_speedup=3, batch_sizes=(1,))
        bundle = leave_run(tmp_path, TINY, asked)
        made = quantize(bundle, tmp_path / "run", ROWS)
        assert made.onnx == bundle.onnx
        assert made.quantization["evidence"]["latencies"][0]["num_rows"] == 1
        assert "times as fast for 1 row is below 3 times" in made.quantization["reason"]

    def test_trees_have_nothing_to_do_and_it_is_said(self, tmp_path):
        bundle = leave_run(tmp_path, XGBoost(num_rounds=3), PAYS)
        made = quantize(bundle, tmp_path / "run", ROWS)
        assert made.onnx == bundle.onnx
        assert "no inner dense layers" in made.quantization["reason"]

    def test_a_run_that_kept_no_rows_is_not_judged_on_nothing(self, wide, tmp_path):
        made = quantize(wide[0], tmp_path, ROWS)
        assert made.onnx == wide[0].onnx
        assert "kept no test rows" in made.quantization["reason"]

    def test_where_it_is_not_declared_nothing_is_touched(self, wide):
        plain = Bundle(
            files=wide[0].files,
            signature=wide[0].signature.model_copy(update={"serving": ServingPolicy()}),
        )
        assert quantize(plain, wide[1], ROWS) is plain


class TestPackage:
    @pytest.fixture
    def sealed(self, wide, tmp_path) -> tuple[Path, Settings]:
        bundle, run_folder = wide
        made = quantize(bundle, run_folder, ROWS)
        card = render_card(
            made.signature, made.training, AGREEMENT, version=1, quantization=made.quantization
        )
        settings = Settings(project_root=tmp_path)
        folder = settings.models_path / "spills/1"
        seal(made, folder, settings, version=1, card=card)
        return folder, settings

    def test_the_card_says_what_was_measured(self, sealed):
        card = verify(*sealed).files["card.md"].decode()
        assert "- served in int8: roc_auc 0." in card
        assert "on 3,000 test rows, 2 layers in int8" in card
        assert "| rows of a batch | float32, µs | int8, µs |" in card

    @pytest.mark.parametrize("name", ["model.onnx", "quantization.json"])
    def test_a_tampered_graph_and_a_tampered_decision_are_refused(self, sealed, name: str):
        folder, settings = sealed
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
        with pytest.raises(IntegrityError, match=f"{name} has not the signed SHA-256"):
            verify(folder, settings)

    def test_the_float_graph_in_the_place_of_the_served_one_is_refused(self, sealed, wide):
        folder, settings = sealed
        (folder / "model.onnx").write_bytes(wide[0].onnx)
        with pytest.raises(IntegrityError, match=r"model\.onnx is not of the signed size"):
            verify(folder, settings)

    def test_what_is_exported_is_what_is_served(self, sealed, tmp_path):
        folder, settings = sealed
        package = verify(folder, settings)
        export(settings, package, tmp_path / "edge")
        assert (tmp_path / "edge/model.onnx").read_bytes() == package.onnx
        shutil.rmtree(tmp_path / "edge")
