from datetime import timedelta

import pytest

from payments import USE_CASE, settings_in
from penstock.data.events import Push
from penstock.errors import DeclarationError, NotFoundError
from penstock.features.stream_declarations import Stream, get_stream, load_streams


class TestStream:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"table": "orders"},
            {"sources": ()},
            {"resolution": timedelta(0)},
            {"flush_interval": timedelta(0)},
            {"max_ahead": timedelta(seconds=-1)},
        ],
    )
    def test_a_part_out_of_range_is_refused_where_it_is_written(self, wrong):
        with pytest.raises(DeclarationError):
            Stream(**({"table": "shop.orders", "sources": (Push(),)} | wrong))


class TestLoad:
    def test_the_only_stream_of_a_use_case_needs_no_name(self, tmp_path):
        settings = settings_in(tmp_path)
        assert (
            get_stream(settings, USE_CASE)
            is load_streams(settings, USE_CASE)["card_fraud.transactions"]
        )

    def test_a_wrong_table_is_told_with_the_nearest(self, tmp_path):
        with pytest.raises(NotFoundError, match=r"card_fraud\.transactions"):
            get_stream(settings_in(tmp_path), USE_CASE, "card_fraud.transaction")
