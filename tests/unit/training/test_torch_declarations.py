"""Contradictions in the declaration of a net are refused where they are written."""

import pytest
from pydantic import ValidationError

from penstock.training.declarations import TorchMLP, TorchModule
from penstock.training.torch_declarations import EarlyStopping


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"loss": "squared_error", "positive_weight": 3}, "positive_weight is for two classes"),
        ({"loss": "absolute_error", "focal_gamma": 2}, "focal_gamma is for two classes"),
        ({"loss": "squared_error", "sampling": "balanced"}, "balanced sampling is for two"),
        ({"sampling": "balanced", "positive_weight": "balanced"}, "the same thing twice"),
        ({"schedule": "warmup_cosine"}, "warmup_share belongs"),
        ({"warmup_share": 0.1}, "warmup_share belongs"),
        ({"num_workers": 2, "min_workers": 3}, "min_workers is 3"),
        ({"batch_size": 8, "num_workers": 2, "accumulation_steps": 5}, "cannot go in 5 parts"),
        ({"sharding": "fsdp2"}, "num_workers is 1"),
        ({"use_gpu": False, "precision": "float16"}, "float16 is for GPUs"),
        ({"precision": "float64"}, "precision"),
        ({"early_stopping": {"validation_share": 1.0}}, "validation_share"),
    ],
)
def test_it_says_what_contradicts(fields, words):
    with pytest.raises(ValidationError, match=words):
        TorchMLP(**fields)


def test_what_agrees_is_taken():
    config = TorchMLP(
        schedule="warmup_cosine",
        warmup_share=0.1,
        num_workers=4,
        min_workers=2,
        precision="bfloat16",
        positive_weight="balanced",
        focal_gamma=2.0,
        early_stopping=EarlyStopping(patience_epochs=5),
        sharding="fsdp2",
    )
    assert (config.fewest_workers, config.num_workers) == (2, 4)
    assert TorchMLP(num_workers=3).fewest_workers == 3


def test_options_keep_their_types():
    options = {"width": 3, "rate": 0.5, "name": "a", "bias": True}
    assert TorchModule(module="a:B", options=options).options == options
    assert isinstance(TorchModule(module="a:B", options=options).options["bias"], bool)
