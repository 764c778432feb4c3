import numpy as np
import pandas as pd
import polars as pl
import pytest

from penstock.data import hashes
from penstock.data.hashes import hash_texts

LETTERS = "0123456789abcdefghij" * 20


def by_pandas(texts: list[str]) -> list[int]:
    """The hashes that older statistics hold."""
    return pd.util.hash_array(np.array(texts, dtype=object), categorize=False).tolist()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "_TEXTS_PER_BLOCK", 3)


@pytest.mark.usefixtures("small_blocks")
class TestHashTexts:
    @pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 31, 32, 127, 128, 129, 300])
    def test_a_text_has_the_hash_that_older_statistics_hold(self, length, monkeypatch):
        texts = [LETTERS[n : n + length] for n in range(10)]
        if length <= 128:
            monkeypatch.delattr(hashes, "_by_pandas")
        assert hash_texts(pl.Series(texts)).tolist() == by_pandas(texts)

    def test_texts_of_several_lengths_keep_their_order(self, monkeypatch):
        monkeypatch.delattr(hashes, "_by_pandas")
        texts = ["ä", "abc", "", "x" * 20, "€", "de", "", "y" * 20] * 3
        assert hash_texts(pl.Series(texts)).tolist() == by_pandas(texts)

    def test_texts_of_as_many_lengths_as_there_are_texts_have_them_too(self):
        texts = [LETTERS[:n] for n in range(30)]
        assert hash_texts(pl.Series(texts)).tolist() == by_pandas(texts)

    def test_a_part_of_a_column_is_hashed_alone(self, monkeypatch):
        monkeypatch.delattr(hashes, "_by_pandas")
        texts = [LETTERS[n : n + 12] for n in range(20)]
        assert hash_texts(pl.Series(texts)[5:15]).tolist() == by_pandas(texts[5:15])

    def test_no_text_has_no_hash(self):
        assert hash_texts(pl.Series([], dtype=pl.String)).tolist() == []
