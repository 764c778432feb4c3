import pandera.polars as pa
import polars as pl
import pytest

from data_room import SPILLS
from penstock.data.contracts import Table, get_table, load_tables
from penstock.errors import DeclarationError, NotFoundError
from penstock.settings import Settings
from real_data import REPO_ROOT

TIME = pa.Column(pl.Datetime("us", "UTC"))


def table(**changes) -> Table:
    given = {
        "name": "river.spills",
        "event_time": "at",
        "schema": pa.DataFrameSchema({"at": TIME, "id": pa.Column(pl.Int64)}),
    }
    return Table(**{**given, **changes})


def schema_with(**options) -> pa.DataFrameSchema:
    return pa.DataFrameSchema({"at": TIME, "id": pa.Column(pl.Int64, **options)})


class TestTable:
    def test_a_sound_declaration_gives_its_columns_in_order(self):
        assert list(SPILLS.columns) == ["id", "at", "litres", "gate", "open"]
        assert SPILLS.columns["litres"] == pl.Float64

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"name": "spills"}, "spills"),
            ({"name": "river.spills__old"}, "two underscores"),
            ({"event_time": "when"}, "when"),
            ({"event_time": "id"}, "event time"),
            ({"key": ("nr",)}, "nr"),
            ({"zone": "Europe/Atlantis"}, "Atlantis"),
            (
                {"schema": pa.DataFrameSchema({"at": pa.Column(pl.Datetime("us", "UTC"), nullable=True)})},
                "nulls",
            ),
            (
                {"schema": pa.DataFrameSchema({"at": TIME, "id": pa.Column(pl.UInt64)})},
                "UInt64",
            ),
            (
                {"schema": pa.DataFrameSchema({"at": pa.Column(pl.Datetime("ns"))})},
                "Datetime",
            ),
            (
                {"schema": pa.DataFrameSchema({"at": TIME, "id": pa.Column(pl.Int64, unique=True)})},
                "unique",
            ),
            (
                {"schema": pa.DataFrameSchema({"at": TIME, "id": pa.Column(pl.Int64, coerce=True)})},
                "coerced",
            ),
            (
                {"schema": pa.DataFrameSchema({"at": TIME}, coerce=True)},
                "coerced",
            ),
            (
                {"schema": pa.DataFrameSchema({"at": TIME}, drop_invalid_rows=True)},
                "drop_invalid_rows",
            ),
            (
                {"schema": schema_with(drop_invalid_rows=True)},
                "drop_invalid_rows in the schema of its column 'id'",
            ),
            (
                {"schema": schema_with(checks=pa.Check.ge(0, n_failure_cases=1))},
                "n_failure_cases",
            ),
            (
                {"schema": schema_with(checks=pa.Check.ge(0, raise_warning=True))},
                "raise_warning",
            ),
            (
                {"schema": pa.DataFrameSchema({"at": TIME}, checks=pa.Check(bool, raise_warning=True))},
                "raise_warning",
            ),
            (
                {"schema": schema_with(default=0)},
                "default",
            ),
        ],
    )  # fmt: skip
    def test_a_contradiction_is_refused_where_it_is_written(self, changes, word):
        with pytest.raises(DeclarationError, match=word):
            table(**changes)


class TestGetTable:
    def test_a_use_cases_tables_are_found_by_name(self):
        settings = Settings(project_root=REPO_ROOT)
        found = get_table(settings, "card_fraud.transactions")
        assert found.key == ("TRANSACTION_ID",)
        assert load_tables(settings, "card_fraud")[found.name] is found

    def test_the_nearest_name_is_offered_for_an_unknown_one(self):
        with pytest.raises(NotFoundError, match=r"did you mean 'card_fraud\.transactions'"):
            get_table(Settings(project_root=REPO_ROOT), "card_fraud.transaction")
