import os
import stat

import pytest

from penstock.data.source_kinds import SqlSource, leave_query, take_query
from penstock.errors import DataError


class TestLeftQuery:
    def test_a_left_query_is_readable_by_us_only_and_taken_once(self, tmp_path):
        source = SqlSource.model_validate({"url": "sqlite:///x.db", "query": "select 1"})
        path = leave_query(source, tmp_path / "queries")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert take_query(path) == source
        with pytest.raises(DataError, match="holds no query"):
            take_query(path)

    def test_what_a_killed_command_left_goes_after_a_day(self, tmp_path):
        source = SqlSource.model_validate({"url": "sqlite:///x.db", "query": "select 1"})
        old, new = (leave_query(source, tmp_path) for _ in range(2))
        a_day_ago = new.stat().st_mtime - 25 * 3600
        os.utime(old, (a_day_ago, a_day_ago))
        leave_query(source, tmp_path)
        assert not old.exists()
        assert new.exists()
