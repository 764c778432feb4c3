"""What a use case may declare to be searched."""

import pytest
from pydantic import ValidationError

from penstock.errors import DeclarationError, NotFoundError
from penstock.training.declarations import (
    Choice,
    Floats,
    Ints,
    LogisticRegression,
    Search,
    TorchMLP,
    XGBoost,
)
from penstock.training.search_declarations import check_searches, with_values

BOOSTED = {"boosted": XGBoost()}


class TestRanges:
    @pytest.mark.parametrize(
        "wrong",
        [
            lambda: Ints(5, 5),
            lambda: Ints(6, 5),
            lambda: Floats(0.0, 1.0, log=True),
            lambda: Floats(0.0, float("inf")),
            lambda: Choice([3]),
            lambda: Choice([3, 3]),
            lambda: Choice([]),
        ],
    )
    def test_a_range_with_nothing_to_search_is_refused_where_it_is_written(self, wrong):
        with pytest.raises(ValidationError):
            wrong()

    def test_a_space_survives_json(self):
        space = Search(
            max_depth=Ints(2, 10),
            learning_rate=Floats(0.01, 0.3, log=True),
            hidden_sizes=Choice([(8,), (8, 8)]),
        )
        assert Search.model_validate_json(space.model_dump_json()) == space
        assert list(space.dimensions) == ["max_depth", "learning_rate", "hidden_sizes"]


class TestCheck:
    def test_a_space_within_the_fields_bounds_is_taken(self):
        search = Search(max_depth=Ints(2, 10), learning_rate=Floats(0.01, 0.3, log=True))
        check_searches({"boosted": search}, BOOSTED)
        check_searches({"net": Search(hidden_sizes=Choice([(8,), (16, 16)]))}, {"net": TorchMLP()})

    def test_an_unknown_field_is_refused_with_the_nearest(self):
        with pytest.raises(NotFoundError, match="did you mean 'max_depth'"):
            check_searches({"boosted": Search(max_deph=Ints(2, 10))}, BOOSTED)

    def test_an_unknown_estimator_is_refused_with_the_nearest(self):
        with pytest.raises(NotFoundError, match="did you mean 'boosted'"):
            check_searches({"bosted": Search(max_depth=Ints(2, 10))}, BOOSTED)

    @pytest.mark.parametrize(
        ("space", "why"),
        [
            ({"max_depth": Ints(0, 10)}, "greater than or equal to 1"),
            ({"subsample": Floats(0.5, 1.5)}, "less than or equal to 1"),
            ({"max_depth": Floats(2.0, 4.0)}, "integer"),
            ({"learning_rate": Choice(["fast", "slow"])}, "number"),
        ],
    )
    def test_a_bound_that_the_field_does_not_allow_is_refused(self, space, why):
        with pytest.raises(DeclarationError, match=why):
            check_searches({"boosted": Search(**space)}, BOOSTED)

    def test_an_empty_space_is_refused(self):
        with pytest.raises(DeclarationError, match="is empty"):
            check_searches({"boosted": Search()}, BOOSTED)

    def test_what_decides_the_kind_of_label_is_not_searched(self):
        with pytest.raises(DeclarationError, match="what it predicts"):
            check_searches({"boosted": Search(loss=Choice(["log_loss", "squared_error"]))}, BOOSTED)

    @pytest.mark.parametrize("name", ["seed", "kind"])
    def test_a_seed_is_not_searched(self, name):
        with pytest.raises(NotFoundError):
            check_searches(
                {"linear": Search(**{name: Ints(0, 9)})}, {"linear": LogisticRegression()}
            )


class TestWithValues:
    def test_fields_are_set_and_the_others_kept(self):
        changed = with_values(XGBoost(max_bins=64), {"max_depth": 3}, of="a trial")
        assert (changed.max_depth, changed.max_bins) == (3, 64)
