import polars as pl
import pytest

from card_fraud.simulator import simulate
from penstock.errors import UserError
from real_data import card_fraud_files


@pytest.fixture(scope="module")
def half_size(tmp_path_factory):
    """All customers and terminals, a third of the days."""
    files = simulate(tmp_path_factory.mktemp("sample"), seed=7, num_days=61)
    return files, pl.read_parquet(files)


def relative_amounts(payments):
    own = payments.filter(pl.col("TX_FRAUD") == 0).with_columns(
        mean=pl.col("TX_AMOUNT").mean().over("CUSTOMER_ID"),
        number=pl.len().over("CUSTOMER_ID"),
    )
    return (
        own.filter(pl.col("number") > 60).select(pl.col("TX_AMOUNT") / pl.col("mean")).to_series()
    )


class TestSimulate:
    def test_one_file_a_month_with_the_published_columns(self, half_size):
        files, payments = half_size
        assert [f.name for f in files] == ["2018-04.parquet", "2018-05.parquet"]
        assert payments.schema == pl.read_parquet_schema(card_fraud_files("2018-04")[0])

    def test_identifiers_stand_in_time_order(self, half_size):
        payments = half_size[1]
        assert payments["TRANSACTION_ID"].to_list() == list(range(payments.height))
        assert payments["TX_DATETIME"].is_sorted()
        start = pl.datetime(2018, 4, 1)
        seconds = (pl.col("TX_DATETIME") - start).dt.total_seconds()
        assert payments.select((seconds == pl.col("TX_TIME_SECONDS")).all()).item()
        assert payments.select(
            (pl.col("TX_TIME_SECONDS") // 86400 == pl.col("TX_TIME_DAYS")).all()
        ).item()

    def test_its_distributions_are_near_those_of_the_published_data(self, half_size):
        ours = half_size[1]
        published = pl.read_parquet(card_fraud_files("2018-04", "2018-05"))
        assert ours.height == pytest.approx(published.height, rel=0.04)
        # Amounts over the customer's mean: free of which customers happened to be drawn.
        for share in (0.05, 0.25, 0.5, 0.75, 0.95):
            expected = relative_amounts(published).quantile(share)
            assert relative_amounts(ours).quantile(share) == pytest.approx(expected, rel=0.02)
        hours = pl.col("TX_DATETIME").dt.hour().std()
        assert ours.select(hours).item() == pytest.approx(published.select(hours).item(), rel=0.02)
        assert ours["TX_FRAUD"].mean() == pytest.approx(published["TX_FRAUD"].mean(), rel=0.15)

    def test_each_kind_of_fraud_is_what_was_published(self, half_size):
        payments = half_size[1]
        large = payments.filter(pl.col("TX_AMOUNT") > 220)
        assert large.filter(pl.col("TX_FRAUD_SCENARIO") == 0).is_empty()
        assert set(payments["TX_FRAUD_SCENARIO"].unique()) == {0, 1, 2, 3}
        assert (payments["TX_FRAUD"] == (payments["TX_FRAUD_SCENARIO"] > 0)).all()
        # A compromised terminal has frauds only, for at least 28 days or to the end.
        second = payments.filter(pl.col("TX_FRAUD_SCENARIO") == 2)
        some = second["TERMINAL_ID"][0]
        first_day = second.filter(pl.col("TERMINAL_ID") == some)["TX_TIME_DAYS"].min()
        while_compromised = payments.filter(
            (pl.col("TERMINAL_ID") == some)
            & pl.col("TX_TIME_DAYS").is_between(first_day, first_day + 20)
        )
        assert while_compromised["TX_FRAUD"].min() == 1

    def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(self, tmp_path):
        size = {"num_customers": 200, "num_terminals": 2000, "num_days": 5}
        (first,) = simulate(tmp_path / "a", seed=1, **size)
        (second,) = simulate(tmp_path / "b", seed=1, **size)
        (third,) = simulate(tmp_path / "c", seed=2, **size)
        assert first.read_bytes() == second.read_bytes() != third.read_bytes()

    def test_a_plane_without_payments_is_refused(self, tmp_path):
        with pytest.raises(UserError, match="no payment came of"):
            simulate(tmp_path, seed=0, num_customers=1, num_terminals=1, num_days=1)
        assert list(tmp_path.iterdir()) == []
