import os
import stat

import pytest

from penstock.cluster import tokens
from penstock.errors import ClusterError


class TestEnsure:
    def test_a_new_token_is_long_and_for_its_owner_only(self, tmp_path):
        path = tokens.ensure(tmp_path / "deep" / "token")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert len(tokens.read(path)) == 64
        assert tokens.is_private(path)

    def test_a_token_that_exists_is_kept_and_closed_to_others(self, tmp_path):
        path = tmp_path / "token"
        path.write_text("mine\n")
        path.chmod(0o644)
        assert not tokens.is_private(path)
        tokens.ensure(path)
        assert tokens.read(path) == "mine"
        assert tokens.is_private(path)

    def test_an_end_before_it_is_written_leaves_none(self, tmp_path, monkeypatch):
        def end(_handle):
            raise SystemExit

        path = tmp_path / "token"
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", end)
            with pytest.raises(SystemExit):
                tokens.ensure(path)
        assert list(tmp_path.iterdir()) == []
        assert len(tokens.read(tokens.ensure(path))) == 64

    def test_of_two_at_once_both_get_the_first_ones(self, tmp_path, monkeypatch):
        path = tmp_path / "token"
        monkeypatch.setattr(type(path), "exists", lambda _: False)
        first = tokens.read(tokens.ensure(path))
        assert tokens.read(tokens.ensure(path)) == first

    def test_two_tokens_differ(self, tmp_path):
        first, second = (tokens.read(tokens.ensure(tmp_path / name)) for name in "ab")
        assert first != second

    @pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe"])
    def test_an_unusable_token_is_refused(self, tmp_path, content):
        path = tmp_path / "token"
        path.write_bytes(content)
        with pytest.raises(ClusterError, match="Ray token"):
            tokens.ensure(path)


def test_a_missing_token_is_named_with_the_next_step(tmp_path):
    with pytest.raises(ClusterError, match=r"penstock up"):
        tokens.read(tmp_path / "none")
