import pytest

from payments import USE_CASE, settings_in
from penstock.errors import NotFoundError
from penstock.features.overview import overview


class TestOverview:
    def test_it_tells_what_was_built_applied_and_materialized(self, online_settings):
        found = overview(online_settings, USE_CASE)
        assert [(t.name, t.version, t.source_version, t.num_rows) for t in found.tables] == [
            ("card_fraud.customer_windows", 0, 0, 3_000),
            ("card_fraud.terminal_windows", 0, 0, 3_000),
        ]
        assert all(view.is_applied and view.materialized_until for view in found.views)
        assert [len(service.features) for service in found.services] == [15]

    def test_before_anything_was_done_it_says_so(self, tmp_path):
        found = overview(settings_in(tmp_path), USE_CASE)
        assert [table.version for table in found.tables] == [None, None]
        assert [view.is_applied for view in found.views] == [False, False]

    def test_an_unknown_use_case_is_refused(self, tmp_path):
        with pytest.raises(NotFoundError):
            overview(settings_in(tmp_path), "card_frauds")
