import os
import stat
from pathlib import Path

import pytest

from penstock.files import write_whole


def test_a_file_is_written_with_its_mode_and_its_folder_is_made(tmp_path: Path):
    file = tmp_path / "keys" / "signing.key"
    write_whole(file, b"secret", mode=0o600)
    assert file.read_bytes() == b"secret"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in file.parent.iterdir()] == ["signing.key"]


def test_killed_before_the_rename_the_old_content_stands(tmp_path: Path, monkeypatch):
    file = tmp_path / "state.json"
    write_whole(file, b"old")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        with pytest.raises(KeyboardInterrupt):
            write_whole(file, b"new")
    assert file.read_bytes() == b"old"
    write_whole(file, b"newer")
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    assert file.read_bytes() == b"newer"
