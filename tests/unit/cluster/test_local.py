import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock.cluster import local, processes
from penstock.cluster.local import ClusterProcess, LocalCluster
from penstock.errors import ClusterError
from penstock.settings import Settings


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(project_root=tmp_path)


def write(settings: Settings, *running: ClusterProcess) -> LocalCluster:
    cluster = LocalCluster(
        cluster_id=local.cluster_id(settings),
        address="127.0.0.1:6390",
        dashboard_url="http://127.0.0.1:8265",
        serving_url="http://127.0.0.1:8000",
        metrics_url="http://127.0.0.1:8290/metrics",
        pid=running[0].pid,
        token_path=str(settings.storage_path / "ray_token"),
        temp_dir=str(local.temp_dir(settings)),
        ray_version="2.60.0",
        started_at=datetime.now(UTC),
        processes=running,
    )
    settings.storage_path.mkdir(parents=True, exist_ok=True)
    local._write(local.state_path(settings), cluster)
    return cluster


def this_process(*, started_s: float | None = None) -> ClusterProcess:
    own = processes.started_s(os.getpid())
    assert own is not None
    return ClusterProcess(name="gcs_server", pid=os.getpid(), started_s=started_s or own)


class TestCurrent:
    def test_what_up_wrote_is_found_while_it_lives(self, settings):
        cluster = write(settings, this_process())
        assert local.current(settings) == cluster
        assert cluster.serving_port == 8000

    def test_a_dead_process_makes_it_none(self, settings):
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        gone = ClusterProcess(name="raylet", pid=ended.pid, started_s=0.0)
        write(settings, this_process(), gone)
        assert local.current(settings) is None

    def test_a_number_used_again_after_a_reboot_is_somebody_else(self, settings):
        write(settings, this_process(started_s=1_600_000_000.0))
        assert local.current(settings) is None

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\x00\xff"])
    def test_an_unreadable_state_is_as_good_as_none(self, settings, content):
        settings.storage_path.mkdir(parents=True)
        local.state_path(settings).write_text(content)
        assert local.current(settings) is None


class TestIdentity:
    def test_the_same_storage_finds_its_ray_again_and_another_does_not(self, tmp_path):
        one, again, other = (
            local.cluster_id(Settings(project_root=tmp_path, storage={"root": root}))
            for root in ("a", "./a", "b")
        )
        assert one == again != other

    def test_unix_sockets_fit_below_the_temporary_folder(self, settings):
        node_id, longest = "f" * 56, "admin.sock.4194304.tmp"
        assert len(str(local.temp_dir(settings) / "i" / node_id / longest)) <= 107


class TestPrivateFolder:
    def test_an_open_folder_of_ours_is_closed(self, tmp_path):
        folder = tmp_path / "open"
        folder.mkdir(mode=0o777)
        assert local.make_private(folder).stat().st_mode & 0o077 == 0

    def test_a_link_that_somebody_laid_is_not_followed(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        trap = tmp_path / "trap"
        trap.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ClusterError, match="belongs to somebody else"):
            local.make_private(trap)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Short as the real one is: Unix sockets will lie in it."""
    with tempfile.TemporaryDirectory(prefix="ps-", dir="/tmp") as folder:
        yield Path(folder)


class TestEnvironment:
    def test_another_rays_address_does_not_leak_into_ours(
        self, settings, monkeypatch, tmp_path, short_folder
    ):
        for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN"):
            monkeypatch.setenv(name, "http://elsewhere")
        monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(tmp_path))
        environment = local._environment(
            settings, tmp_path / "token", short_folder, gcs_port=6390, dashboard_metrics_port=8291
        )
        assert "http://elsewhere" not in environment.values()
        assert environment["RAY_ADDRESS"] == "127.0.0.1:6390"
        assert "PENSTOCK_PROJECT_ROOT" not in environment
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["PENSTOCK_STORAGE__ROOT"] == str(settings.storage_path)


def test_a_ray_that_does_not_start_says_what_it_said(settings, tmp_path):
    environment = os.environ | {"PENSTOCK_CLUSTER_ID": local.cluster_id(settings)}
    with pytest.raises(ClusterError, match=r"`ray start` ended with 2.*no-such-flag"):
        local._run_ray_start(["--no-such-flag"], environment, tmp_path)
