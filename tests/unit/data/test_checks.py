import pandera.polars as pa
import polars as pl
import pytest
from pandera.config import config_context

from data_room import SPILLS, spills
from penstock.data.checks import ROW, RawBlock, check
from penstock.data.contracts import Table
from penstock.errors import DataError


def block(frame: pl.DataFrame, first_row: int = 0) -> RawBlock:
    return RawBlock(first_row, {s.name: s for s in frame}, frame.height)


def spoiled(**values) -> pl.DataFrame:
    """Four good rows, the second with other values."""
    frame = spills(4)
    at = pl.int_range(pl.len()) == 1
    return frame.with_columns(
        pl.when(at).then(pl.lit(v, dtype=frame.schema[k])).otherwise(pl.col(k)).alias(k)
        for k, v in values.items()
    )


class TestCheck:
    def test_good_rows_are_kept_with_their_position(self):
        checked = check(block(spills(4), first_row=100), SPILLS)
        assert checked.bad.is_empty()
        assert checked.kept[ROW].to_list() == [100, 101, 102, 103]
        assert checked.kept.drop(ROW).equals(spills(4))

    @pytest.mark.parametrize(
        ("column", "value", "rule"),
        [
            ("id", -1, "greater_than_or_equal_to(0)"),
            ("id", None, "not_nullable"),
            ("litres", 1000.5, "in_range(0, 1000)"),
            ("litres", float("nan"), "finite"),
            ("litres", float("-inf"), "finite"),
            ("gate", "east", "isin(['north', 'south'])"),
            ("open", None, "not_nullable"),
        ],
    )
    def test_a_bad_row_says_where_what_and_why(self, column, value, rule):
        checked = check(block(spoiled(**{column: value}), first_row=7), SPILLS)
        assert checked.kept[ROW].to_list() == [7, 9, 10]
        row = checked.bad.row(0, named=True)
        expected = None if value is None else str(value)
        assert (row["row"], row["column"], row["rule"], row["value"]) == (8, column, rule, expected)
        assert '"gate"' in row["record"]

    def test_an_environment_that_switches_pandera_off_changes_nothing(self):
        with config_context(validation_enabled=False, validation_depth="SCHEMA_ONLY"):
            assert check(block(spoiled(id=-1)), SPILLS).bad.height == 1

    def test_null_is_fine_where_the_contract_allows_it(self):
        assert check(block(spoiled(litres=None, gate=None)), SPILLS).bad.is_empty()

    def test_a_row_that_breaks_many_rules_is_one_bad_row(self):
        checked = check(block(spoiled(id=-5, litres=5000.0, gate="x", open=None)), SPILLS)
        assert (checked.kept.height, checked.bad.height) == (3, 1)

    def test_a_value_that_cannot_be_converted_is_a_bad_row_of_the_rule_type(self):
        texts = {name: pl.Series(name, ["1", "2"]) for name in ("id", "litres")} | {
            "at": pl.Series(["2024-05-01T12:00:00", "noon"]),
            "gate": pl.Series(["north", "north"]),
            "open": pl.Series(["true", "false"]),
        }
        checked = check(RawBlock(0, texts, 2), SPILLS)
        assert checked.bad.select("row", "column", "rule", "value").rows() == [
            (1, "at", "type", "noon")
        ]
        assert (checked.num_values["at"], checked.num_failed["at"]) == (2, 1)

    def test_a_local_time_that_did_not_happen_is_a_bad_row(self):
        local = spills(1).with_columns(at=pl.datetime(2024, 3, 31, 2, 30).cast(pl.Datetime("us")))
        assert check(block(local), SPILLS).bad["rule"].to_list() == ["type"]

    def test_a_check_over_two_columns_names_no_single_one(self):
        table = Table(
            name="river.pairs",
            event_time="at",
            schema=pa.DataFrameSchema(
                dict(SPILLS.schema.columns),
                checks=pa.Check(
                    lambda data: data.lazyframe.select(pl.col("litres") > pl.col("id")),
                    name="more_litres_than_id",
                ),
            ),
        )
        checked = check(block(spoiled(id=900)), table)
        assert checked.bad.select("row", "rule").rows() == [(1, "more_litres_than_id")]

    def test_a_check_that_answers_for_the_column_refuses_the_block(self):
        columns = dict(SPILLS.schema.columns)
        columns["id"] = pa.Column(
            pl.Int64,
            pa.Check(lambda data: bool(data.lazyframe.collect()[data.key].mean() > 1e9)),
        )
        table = Table(name="river.means", event_time="at", schema=pa.DataFrameSchema(columns))
        with pytest.raises(DataError, match="as a whole"):
            check(block(spills(4)), table)

    def test_the_record_holds_values_that_json_cannot(self):
        raw = RawBlock(0, {"id": [2**80], "litres": [float("inf")]}, 1)
        assert raw.records([0]) == [f'{{"id":"{2**80}","litres":"inf"}}']

    def test_the_record_holds_times_that_python_does_not_have_as_their_number(self):
        far = pl.Series([2**61, 0]).cast(pl.Datetime("us", "UTC"))
        assert RawBlock(0, {"at": far}, 2).records([0]) == [f'{{"at":"{2**61}"}}']
        assert RawBlock(0, {"at": far}, 2).texts("at", [1])[0].startswith("1970-01-01")
