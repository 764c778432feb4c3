import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.errors import BusyError
from penstock.locks import exclusive

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
