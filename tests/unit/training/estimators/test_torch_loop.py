"""The training loop: what comes after a loss, when it ends, and that it needs nothing of ours."""

import ast
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from penstock.training.declarations import TorchMLP
from penstock.training.estimators import torch_loop
from penstock.training.estimators.torch_build import build
from penstock.training.estimators.torch_checkpoints import FolderJournal, Forgetful
from penstock.training.estimators.torch_loop import best_epoch, is_over, train
from penstock.training.estimators.torch_rows import Order, Seat, hold
from penstock.training.torch_declarations import EarlyStopping, Stage
from projects import REPO_ROOT

NUM_ROWS, NUM_FEATURES = 50, 4
generator = torch.Generator().manual_seed(3)
INPUTS = torch.randn(NUM_ROWS, NUM_FEATURES, generator=generator)
TARGETS = (INPUTS[:, 0] + INPUTS[:, 1] > 0.5).float()
# All that has a state: dropout's random numbers, moments, the loss's scale, the best weights.
CONFIG = TorchMLP(
    hidden_sizes=(8,),
    dropout=0.3,
    num_epochs=4,
    batch_size=16,
    learning_rate=0.05,
    schedule="warmup_cosine",
    warmup_share=0.2,
    max_gradient_norm=1.0,
    optimizer="adamw",
    weight_decay=0.01,
)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads would wait for each other longer than these few rows take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class LostError(Exception):
    """The worker is gone."""


class Dying(FolderJournal):
    """Keeps checkpoints until the worker is lost, right after a report."""

    def __init__(self, folder, *, after):
        super().__init__(folder, Seat())
        self.after = after

    def report(self, metrics, write):
        super().report(metrics, write)
        if len(self.reported) == self.after:
            raise LostError


def fit(config, journal=None, *, inputs=INPUTS, targets=TARGETS, net=None, validation=None):
    order = Order(num_rows=len(inputs), batch_size=config.batch_size, seed=config.seed)
    return train(
        net or build(config, num_features=inputs.shape[1]),
        config,
        hold("on the device", inputs, targets, order=order, seat=Seat()),
        journal=journal or Forgetful(),
        seat=Seat(),
        validation=validation,
    )


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def change(**fields):
    return CONFIG.model_copy(update=fields)


class TestStages:
    STAGED = CONFIG.model_copy(
        update={
            "schedule": "constant",
            "warmup_share": None,
            "stages": (
                Stage(from_epoch=1, learning_rate=0.01),
                Stage(from_epoch=3, weight_decay=0.5, max_gradient_norm=0.1),
            ),
        }
    )

    def test_values_change_at_their_epoch_and_stay(self):
        rates = [epoch["learning_rate"] for epoch in fit(self.STAGED).history]
        assert rates == [0.05, 0.01, 0.01, 0.01]

    @pytest.mark.parametrize("without", [0, 1])
    def test_each_stage_makes_another_net(self, without):
        stages = [stage for place, stage in enumerate(self.STAGED.stages) if place != without]
        other = self.STAGED.model_copy(update={"stages": tuple(stages)})
        assert not same(fit(self.STAGED).weights, fit(other).weights)

    @pytest.mark.parametrize("num_epochs", [1, 3])
    def test_gone_on_from_a_shorter_fits_checkpoint_it_is_the_same_net(self, tmp_path, num_epochs):
        stages = [each for each in self.STAGED.stages if each.from_epoch < num_epochs]
        changed = {"num_epochs": num_epochs, "stages": tuple(stages)}
        parent = tmp_path / "parent"
        fit(self.STAGED.model_copy(update=changed), FolderJournal(parent, Seat()))
        kept = sorted(str(file) for file in parent.rglob("*"))
        own = FolderJournal(tmp_path / "own", Seat(), begin_from=parent)
        outcome = fit(self.STAGED, own)
        assert len(own.reported) == 4 - num_epochs
        assert same(outcome.weights, fit(self.STAGED).weights)
        assert sorted(str(file) for file in parent.rglob("*")) == kept

    def test_its_own_checkpoint_comes_before_the_parents(self, tmp_path):
        parent, own = tmp_path / "parent", tmp_path / "own"
        short = self.STAGED.model_copy(update={"num_epochs": 1, "stages": ()})
        fit(short, FolderJournal(parent, Seat()))
        fit(self.STAGED, FolderJournal(own, Seat(), begin_from=parent))
        again = FolderJournal(own, Seat(), begin_from=parent)
        assert same(fit(self.STAGED, again).weights, fit(self.STAGED).weights)
        assert again.reported == []


class TestAfterALoss:
    @pytest.mark.parametrize("every", [None, 1, 3, 5])
    @pytest.mark.parametrize("after", [1, 2, 3])
    def test_the_weights_and_the_history_are_those_of_an_undisturbed_run(
        self, tmp_path, every, after
    ):
        config = change(checkpoint_every_steps=every)
        with pytest.raises(LostError):
            fit(config, Dying(tmp_path, after=after))
        again = FolderJournal(tmp_path, Seat())
        outcome = fit(config, again)
        undisturbed = fit(config)
        assert outcome.history == undisturbed.history
        assert same(outcome.weights, undisturbed.weights)
        if every is None:
            # No epoch that was reported is trained again.
            assert len(again.reported) == config.num_epochs - after

    def test_random_numbers_of_the_users_own_go_on_too(self, tmp_path):
        config = change(checkpoint_every_steps=1)
        undisturbed = fit(config, net=Noisy())
        with pytest.raises(LostError):
            fit(config, Dying(tmp_path, after=6), net=Noisy())
        again = fit(config, FolderJournal(tmp_path, Seat()), net=Noisy())
        assert same(again.weights, undisturbed.weights)

    @pytest.mark.parametrize("forgotten", ["net", "optimizer", "step", "total"])
    def test_without_any_part_of_a_checkpoint_they_differ(self, tmp_path, monkeypatch, forgotten):
        config = change(checkpoint_every_steps=3)
        fresh = {"net": None, "optimizer": None, "step": 0, "total": 0.0}
        spread = torch_loop.spread(build(config, num_features=NUM_FEATURES), config, Seat())
        fresh["net"] = spread.weights()
        with pytest.raises(LostError):
            fit(config, Dying(tmp_path, after=2))
        read_parts = torch_loop.read_parts
        monkeypatch.setattr(
            torch_loop,
            "read_parts",
            lambda *given: forget(read_parts(*given), forgotten, fresh[forgotten]),
        )
        outcome, undisturbed = fit(config, FolderJournal(tmp_path, Seat())), fit(config)
        equal = same(outcome.weights, undisturbed.weights)
        assert not (equal and outcome.history == undisturbed.history)

    def test_without_the_random_state_they_differ(self, tmp_path, monkeypatch):
        config = change(checkpoint_every_steps=3)
        with pytest.raises(LostError):
            fit(config, Dying(tmp_path, after=2))
        for file in tmp_path.glob("*/random-*"):
            file.unlink()
        outcome, undisturbed = fit(config, FolderJournal(tmp_path, Seat())), fit(config)
        assert not same(outcome.weights, undisturbed.weights)

    def test_the_best_weights_survive(self, tmp_path):
        config = change(num_epochs=8, early_stopping=EarlyStopping(patience_epochs=3))
        # The other way round: whatever is learnt makes it worse, so that the best comes early.
        validation = INPUTS, 1 - TARGETS
        with pytest.raises(LostError):
            fit(config, Dying(tmp_path, after=3), validation=validation)
        outcome = fit(config, FolderJournal(tmp_path, Seat()), validation=validation)
        undisturbed = fit(config, validation=validation)
        assert outcome.history == undisturbed.history
        assert best_epoch(outcome.history) < 3
        assert same(outcome.weights, undisturbed.weights)


def forget(state, name, fresh):
    if name == "optimizer":
        fresh = {**state["optimizer"], "state": {}}
    return {**state, name: fresh}


class Noisy(torch.nn.Module):
    """A net that asks Python and numpy for random numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(NUM_FEATURES, 1)

    def forward(self, inputs):
        import random

        return self.layer(inputs) + random.random() + np.random.normal()


class TestSteps:
    def test_a_step_in_parts_is_the_same_step(self):
        whole = fit(change(dropout=0.0))
        parts = fit(change(dropout=0.0, accumulation_steps=4))
        for name, value in whole.weights.items():
            torch.testing.assert_close(parts.weights[name], value, rtol=1e-4, atol=1e-6)

    def test_a_long_gradient_is_shortened(self):
        step = {"optimizer": "adam", "num_epochs": 1, "batch_size": NUM_ROWS, "dropout": 0.0}
        free = fit(change(**step, max_gradient_norm=None))
        # Adam's first step does not know a gradient's length, but for what is added to it.
        held = fit(change(**step, max_gradient_norm=1e-7))
        start = build(CONFIG, num_features=NUM_FEATURES).state_dict()
        moved = [
            sum(float((w - start[n]).abs().sum()) for n, w in each.weights.items())
            for each in (free, held)
        ]
        assert moved[1] < moved[0]

    @pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
    def test_any_precision_learns_with_float32_weights(self, precision):
        outcome = fit(change(precision=precision, num_epochs=6))
        assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]
        assert {value.dtype for value in outcome.weights.values()} == {torch.float32}

    def test_the_loss_is_the_mean_over_the_epochs_rows(self):
        config = change(learning_rate=1e-12, dropout=0.0, num_epochs=1)
        net = build(config, num_features=NUM_FEATURES)
        with torch.no_grad():
            expected = torch.nn.functional.binary_cross_entropy_with_logits(
                net(INPUTS).reshape(-1), TARGETS
            )
        (epoch,) = fit(config).history
        assert epoch["train_loss"] == pytest.approx(float(expected), rel=1e-5)


class TestDivergence:
    def test_the_batch_and_its_row_are_named_and_the_last_good_checkpoint_is_kept(self, tmp_path):
        config = change(checkpoint_every_steps=1, num_epochs=1)
        # A row of the third batch.
        row = int(Order(num_rows=NUM_ROWS, batch_size=config.batch_size).epoch(0)[40])
        inputs = INPUTS.clone()
        inputs[row, 2] = torch.inf
        journal = FolderJournal(tmp_path, Seat())
        found = fit(config, journal, inputs=inputs).divergence
        assert (found.epoch, found.batch, found.num_batches, found.row) == (1, 3, 4, row)
        with journal.latest() as folder:
            kept = torch.load(folder / "state.pt", weights_only=True)
        assert kept["step"] == 2
        assert all(value.isfinite().all() for value in kept["net"].values())

    def test_weights_that_grew_too_large_are_no_rows_fault(self):
        found = fit(change(learning_rate=1e38, schedule="constant", warmup_share=None)).divergence
        assert found is not None
        assert found.row is None

    def test_where_looking_is_dear_it_is_seen_later_and_the_batch_is_still_named(self, monkeypatch):
        monkeypatch.setattr(torch_loop, "_STEPS_PER_LOOK", {"cpu": 50})
        row = int(Order(num_rows=NUM_ROWS, batch_size=CONFIG.batch_size).epoch(0)[40])
        inputs = INPUTS.clone()
        inputs[row, 2] = torch.nan
        found = fit(change(num_epochs=1), inputs=inputs).divergence
        assert found.batch == 3
        assert found.row is None


class TestEarlyStopping:
    def test_it_ends_when_patience_does(self):
        history = [{"validation_loss": loss} for loss in (3.0, 2.0, 2.0, 2.5)]
        assert best_epoch(history) == 1
        assert is_over(history, patience_epochs=2)
        assert not is_over(history, patience_epochs=3)
        assert not is_over([], patience_epochs=1)

    def test_the_best_epochs_weights_are_what_is_left(self):
        config = change(num_epochs=9, early_stopping=EarlyStopping(patience_epochs=2))
        outcome = fit(config, validation=(INPUTS, 1 - TARGETS))
        best = best_epoch(outcome.history)
        assert len(outcome.history) == best + 3
        net = build(config, num_features=NUM_FEATURES)
        net.load_state_dict(outcome.weights)
        with torch.no_grad():
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                net.eval()(INPUTS).reshape(-1), 1 - TARGETS
            )
        assert float(loss) == pytest.approx(outcome.history[best]["validation_loss"], rel=1e-5)


GPU_SCRIPT = REPO_ROOT / "benchmarks/_train_gpu.py"


def imports_of(file):
    """Give the modules that a file imports when it is run; what only types need is left out."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_the_loop_imports_torch_and_numpy_alone():
    waiting, seen, found = [GPU_SCRIPT], set(), set()
    while waiting:
        for name in set(imports_of(waiting.pop())) - seen:
            seen.add(name)
            file = REPO_ROOT / "platform" / f"{name.replace('.', '/')}.py"
            if file.is_file():
                waiting.append(file)
            found.add(name.partition(".")[0])
    assert "penstock.training.estimators.torch_steps" in seen
    assert found - sys.stdlib_module_names - {"penstock"} == {"torch", "numpy"}


@pytest.mark.slow
def test_a_machine_with_torch_alone_measures_its_device():
    # The child refuses what such a machine does not have.
    code = """
import runpy, sys
absent = ("ray", "feast", "mlflow", "pydantic", "polars", "pyarrow", "psutil")
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    tiny = "--rows 2048 --features 8 --width 16 --layers 2 --batch 256 --product 64 --no-compile"

    def run(*options):
        return subprocess.run(
            [sys.executable, "-c", f"import sys; sys.argv = {[str(GPU_SCRIPT), *options]}\n{code}"],
            capture_output=True,
            text=True,
            check=False,
        )

    measured = run("--device", "cpu", *tiny.split())
    assert measured.returncode == 0, measured.stderr
    found = json.loads(measured.stdout.splitlines()[-1])
    assert found["device"] == "CPU"
    losses = {way["last_loss"] for way in found["ways"].values()}
    assert max(losses) - min(losses) < 0.01
    if not torch.cuda.is_available():
        refused = run()
        assert refused.returncode == 2
        assert "there is no GPU here" in refused.stderr


def test_any_object_with_the_fields_is_a_declaration():
    config = SimpleNamespace(**CONFIG.model_dump())
    assert same(
        fit(config, net=build(CONFIG, num_features=NUM_FEATURES)).weights, fit(CONFIG).weights
    )
