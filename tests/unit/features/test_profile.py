import numpy as np
import polars as pl
import pytest

from payments import TRANSACTIONS, USE_CASE, settings_in
from penstock.data import statistics, tables
from penstock.errors import NotFoundError, UserError
from penstock.features.profile import profile, shift, tables_to_profile

TABLE = "card_fraud.readings"


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path)


def rows(*, centre: float, num: int = 2_000, **more: object) -> pl.DataFrame:
    levels = np.random.default_rng(num).normal(centre, 1.0, num)
    return pl.DataFrame({"level": levels, "gate": ["open", "shut"] * (num // 2), **more})


def commit(settings, *frames):
    for frame in frames:
        tables.commit(settings, TABLE, frame, mode="overwrite")


def columns_of(found):
    return {column.name: column for column in found.columns}


class TestProfile:
    def test_it_says_what_the_statistics_of_the_version_say(self, settings):
        commit(settings, rows(centre=0.0), rows(centre=5.0))
        found = profile(settings, TABLE, version=0)
        kept = tables.column_statistics(settings, TABLE, version=0)
        assert [column.statistics for column in found.columns] == kept
        level = columns_of(found)["level"]
        assert abs(level.spread.mean) < 0.1
        assert sum(level.spread.counts) + level.spread.below + level.spread.above == 2_000

    def test_a_feature_tables_keys_and_time_are_known_as_such(self, prepared):
        found = columns_of(profile(prepared, "card_fraud.terminal_windows"))
        assert found["TERMINAL_ID"].role == "key"
        assert found["TX_DATETIME"].role == "time"
        assert found["TERMINAL_ID_RISK_7DAY_WINDOW"].role == "value"

    def test_a_raw_tables_key_comes_from_its_contract(self, prepared):
        assert columns_of(profile(prepared, TRANSACTIONS))["TRANSACTION_ID"].role == "key"


class TestAgainst:
    def test_what_moved_is_found_and_what_did_not_is_not(self, settings):
        steady = {"steady": np.arange(2_000) % 7}
        commit(settings, rows(centre=0.0, **steady), rows(centre=1.0, **steady))
        found = profile(settings, TABLE, against=0)
        assert [column.name for column in found.moved] == ["level"]
        # Two normal distributions one deviation apart: 2 * Phi(1/2) - 1.
        assert columns_of(found)["level"].shift == pytest.approx(0.383, abs=0.03)
        assert columns_of(found)["steady"].shift == 0.0

    def test_missing_values_that_come_up_count_as_a_move(self, settings):
        holes = pl.Series("level", [None if n % 5 == 0 else 1.0 for n in range(2_000)])
        whole = pl.Series("level", [1.0] * 2_000)
        commit(settings, whole.to_frame(), holes.to_frame())
        [level] = profile(settings, TABLE, against=0).moved
        assert (level.missing_share_before, level.missing_share) == (0.0, 0.2)

    def test_texts_move_too(self, settings):
        commit(settings, rows(centre=0.0), rows(centre=0.0, gate=["open"] * 2_000))
        assert columns_of(profile(settings, TABLE, against=0))["gate"].shift == 0.5

    def test_columns_that_came_and_went_are_named(self, settings):
        commit(settings, rows(centre=0.0, old=1), rows(centre=0.0, new=1))
        found = profile(settings, TABLE, against=0)
        assert (found.columns_added, found.columns_gone) == (("new",), ("old",))
        assert columns_of(found)["new"].shift is None

    def test_both_are_counted_on_the_same_bins(self, settings):
        commit(settings, rows(centre=0.0), rows(centre=9.0))
        level = columns_of(profile(settings, TABLE, against=0))["level"]
        assert level.spread_before is not None
        assert level.spread.edges == level.spread_before.edges
        assert level.spread_before.below == 2_000

    def test_a_version_is_not_held_against_itself(self, settings):
        commit(settings, rows(centre=0.0))
        with pytest.raises(UserError, match="against itself"):
            profile(settings, TABLE, against=0)

    def test_an_empty_version_moved_nowhere(self, settings):
        commit(settings, rows(centre=0.0), rows(centre=0.0).clear())
        assert profile(settings, TABLE, against=0).moved == []


def test_the_shift_is_that_of_all_values_within_its_bound():
    rng = np.random.default_rng(5)
    sides = [rng.gamma(2.0, 1.0, 30_000), rng.gamma(2.5, 1.0, 20_000)]
    summaries = [statistics.summarize([pl.DataFrame({"x": side})])[0] for side in sides]
    at = np.sort(np.concatenate(sides))
    shares = [np.searchsorted(np.sort(side), at, side="right") / len(side) for side in sides]
    exact = np.abs(shares[0] - shares[1]).max()
    assert shift(*summaries) == pytest.approx(exact, abs=0.004)


class TestTablesToProfile:
    def test_all_feature_tables_where_none_is_named(self, settings):
        names = tables_to_profile(settings, USE_CASE, None)
        assert names == ["card_fraud.customer_windows", "card_fraud.terminal_windows"]

    def test_a_version_asks_for_one_table(self, settings):
        with pytest.raises(UserError, match="of which table"):
            tables_to_profile(settings, USE_CASE, None, one_version=True)

    def test_a_table_of_another_use_case_is_refused(self, settings):
        with pytest.raises(UserError, match="no table of card_fraud"):
            tables_to_profile(settings, USE_CASE, "shop.orders")

    def test_one_that_was_not_built_says_how(self, settings):
        with pytest.raises(NotFoundError, match="penstock features build card_fraud"):
            profile(settings, "card_fraud.customer_windows")
