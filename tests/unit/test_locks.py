import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import locks
from penstock.errors import BusyError
from penstock.locks import exclusive, is_held, private_folder

HOLD = """
import sys, time
from pathlib import Path
from penstock.locks import exclusive
with exclusive(Path(sys.argv[1]), what="the table"):
    print("held", flush=True)
    time.sleep(60)
"""


class TestExclusive:
    def test_names_the_holder_and_dies_with_it(self, tmp_path: Path):
        lock = tmp_path / "a.lock"
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with (
                pytest.raises(BusyError, match=f"process {holder.pid}"),
                exclusive(lock, what="it"),
            ):
                pass
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
        with exclusive(lock, what="it"):
            pass

    def test_is_free_again_after_the_block_raises(self, tmp_path: Path):
        lock = tmp_path / "a.lock"
        with pytest.raises(ZeroDivisionError), exclusive(lock, what="it"):
            _ = 1 // 0
        with exclusive(lock, what="it"):
            pass


class TestPrivateFolder:
    def test_what_a_dead_owner_left_is_cleared_but_a_living_ones_is_not(self, tmp_path: Path):
        with private_folder(tmp_path, what="x") as living:
            dead = tmp_path / "dead"
            dead.mkdir()
            (dead / "rows.arrow").write_bytes(b"x")
            with private_folder(tmp_path, what="x") as own:
                assert own.is_dir()
                assert living.is_dir()
                assert not dead.exists()
        assert not living.exists()

    def test_a_folder_that_its_owner_removes_at_the_same_moment_is_no_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        for name in ("before its lock", "after its lock"):
            (tmp_path / name).mkdir()
        lock, remove = locks.exclusive, shutil.rmtree

        def lock_too_late(path, **given):
            if path.parent.name == "before its lock":
                remove(path.parent)
                raise FileNotFoundError(path)
            return lock(path, **given)

        def remove_too_late(path, **given):
            remove(path)
            remove(path, **given)

        monkeypatch.setattr(locks, "exclusive", lock_too_late)
        monkeypatch.setattr(shutil, "rmtree", remove_too_late)
        with private_folder(tmp_path, what="x") as own:
            assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [own.name]


class TestIsHeld:
    def test_it_says_so_while_somebody_holds_it_and_takes_nothing(self, tmp_path: Path):
        lock = tmp_path / "a.lock"
        assert not is_held(lock)
        assert not lock.exists()
        with exclusive(lock, what="the table"):
            assert is_held(lock)
        assert not is_held(lock)
        with exclusive(lock, what="the table"):
            pass
