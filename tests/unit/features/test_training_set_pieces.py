"""A training set by pieces, held against the whole."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from penstock.errors import IntegrityError
from penstock.features.training_set import content_digest, read_training_set
from penstock.features.training_set_pieces import (
    column_names,
    each_piece,
    read_columns,
    stored_digest,
    take_rows,
)
from stored_sets import make_frame, store

NUM_ROWS = 1000


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return store(make_frame(NUM_ROWS), tmp_path_factory.mktemp("set"))


def test_they_are_row_groups_in_the_sets_order(made):
    found = list(each_piece(made, lambda start, piece: (start, piece)))
    assert [start for start, _ in found] == [0, 150, 300, 400, 550, 700, 800, 950]
    assert_frame_equal(pl.concat([piece for _, piece in found]), read_training_set(made))


def test_a_piece_that_holds_no_asked_row_is_not_read(made):
    asked = np.array([149, 400, 401, 999])
    assert list(each_piece(made, lambda start, _: start, numbers=asked)) == [0, 400, 950]


def test_no_rows_are_a_frame_of_the_sets_columns(made):
    found = take_rows(made, np.empty(0, dtype=np.int64))
    assert_frame_equal(found, read_training_set(made)[:0])


def test_some_columns_come_in_the_order_they_are_named_in(made):
    assert column_names(made)[:3] == ["at", "station", "broke"]
    assert_frame_equal(read_columns(made, ["f3", "at"]), read_training_set(made).select("f3", "at"))


@settings(max_examples=30, deadline=None)
@given(numbers=st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=50))
def test_any_rows_come_as_named_twice_too(made, numbers):
    found = take_rows(made, np.array(numbers), ["station", "f0"])
    assert_frame_equal(found, read_training_set(made).select("station", "f0")[numbers])


def test_the_digest_is_that_of_the_whole(made):
    assert stored_digest(made) == content_digest(read_training_set(made))


def test_a_flipped_bit_is_found(tmp_path):
    made = store(make_frame(NUM_ROWS), tmp_path)
    file = tmp_path / "data-00001.parquet"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match="cannot be read"):
        list(each_piece(made, lambda _, piece: piece))


def test_a_file_that_is_gone_is_missed(tmp_path):
    made = store(make_frame(NUM_ROWS), tmp_path)
    (tmp_path / "data-00002.parquet").unlink()
    with pytest.raises(IntegrityError, match="800 of 1,000 rows"):
        list(each_piece(made, lambda _, piece: piece))
