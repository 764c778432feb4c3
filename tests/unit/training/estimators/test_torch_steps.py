"""One optimiser step's parts: losses, weights, learning rates."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import TrainingDataError
from penstock.training.declarations import TorchMLP
from penstock.training.estimators import torch_steps

OUTPUTS = torch.tensor([-3.0, -0.2, 0.4, 5.0])
TARGETS = torch.tensor([0.0, 1.0, 0.0, 1.0])


class TestLoss:
    def test_without_a_word_it_is_the_log_loss_of_each_row(self):
        losses = torch_steps.training_loss(TorchMLP(), None)(OUTPUTS, TARGETS)
        p = torch.sigmoid(OUTPUTS)
        expected = -torch.where(TARGETS == 1, p, 1 - p).log()
        torch.testing.assert_close(losses, expected)

    def test_a_positive_row_weighs_what_is_declared(self):
        plain = torch_steps.training_loss(TorchMLP(), None)(OUTPUTS, TARGETS)
        weighted = torch_steps.training_loss(TorchMLP(), 7.0)(OUTPUTS, TARGETS)
        torch.testing.assert_close(weighted, plain * torch.tensor([1.0, 7.0, 1.0, 7.0]))

    def test_the_focal_loss_is_the_published_formula(self):
        config = TorchMLP(focal_gamma=2.0)
        p = torch.sigmoid(OUTPUTS)
        own = torch.where(TARGETS == 1, p, 1 - p)
        losses = torch_steps.training_loss(config, None)(OUTPUTS, TARGETS)
        torch.testing.assert_close(losses, -((1 - own) ** 2) * own.log())

    @pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
    def test_a_row_that_is_perfectly_predicted_has_a_finite_slope(self, gamma):
        outputs = torch.tensor([200.0, -200.0], requires_grad=True)
        config = TorchMLP(focal_gamma=gamma)
        torch_steps.training_loss(config, None)(outputs, torch.tensor([1.0, 0.0])).sum().backward()
        assert outputs.grad.isfinite().all()

    def test_a_number_has_the_declared_distance(self):
        for loss, expected in (("squared_error", 9.0), ("absolute_error", 3.0)):
            config = TorchMLP(loss=loss)
            (row,) = torch_steps.training_loss(config, None)(
                torch.tensor([5.0]), torch.tensor([2.0])
            )
            assert row == expected


class TestPositiveWeight:
    def test_balanced_makes_both_classes_weigh_the_same(self):
        config = TorchMLP(positive_weight="balanced")
        assert torch_steps.positive_weight(config, num_positives=20, num_rows=100) == 4.0

    def test_a_number_is_taken_as_it_is(self):
        config = TorchMLP(positive_weight=2.5)
        assert torch_steps.positive_weight(config, num_positives=0, num_rows=9) == 2.5

    @pytest.mark.parametrize("field", [{"positive_weight": "balanced"}, {"sampling": "balanced"}])
    @pytest.mark.parametrize("num_positives", [0, 9])
    def test_one_class_cannot_be_balanced(self, field, num_positives):
        with pytest.raises(TrainingDataError, match="one class cannot be balanced"):
            torch_steps.positive_weight(TorchMLP(**field), num_positives=num_positives, num_rows=9)


class TestLearningRate:
    @settings(deadline=None)
    @given(num_steps=st.integers(1, 500), share=st.floats(0.01, 0.99))
    def test_warm_up_rises_to_the_top_and_comes_down_to_zero(self, num_steps, share):
        config = TorchMLP(schedule="warmup_cosine", warmup_share=share, learning_rate=0.5)
        rates = [torch_steps.learning_rate_at(config, s, num_steps) for s in range(num_steps + 1)]
        top = math.ceil(share * num_steps)
        assert rates[: top + 1] == sorted(rates[: top + 1])
        assert rates[top:] == sorted(rates[top:], reverse=True)
        assert max(rates) == 0.5
        assert top == num_steps or rates[-1] == pytest.approx(0, abs=1e-12)

    def test_cosine_is_torchs_own(self):
        config = TorchMLP(learning_rate=0.3)
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
        for step in range(40):
            ours = torch_steps.learning_rate_at(config, step, 40)
            assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
            optimizer.step()
            theirs.step()

    def test_constant_stays(self):
        config = TorchMLP(schedule="constant", learning_rate=0.3)
        assert {torch_steps.learning_rate_at(config, s, 9) for s in range(9)} == {0.3}


@pytest.mark.parametrize(("optimizer", "kind"), [("adam", "Adam"), ("adamw", "AdamW")])
def test_the_declared_optimizer_is_made(optimizer, kind):
    config = TorchMLP(optimizer=optimizer, weight_decay=0.1, learning_rate=0.2)
    made = torch_steps.make_optimizer(config, [torch.nn.Parameter(torch.zeros(2))])
    assert type(made).__name__ == kind
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.2, 0.1)
