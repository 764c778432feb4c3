import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from penstock.cluster import head_memory, start_hook
from penstock.errors import ClusterError
from penstock.settings import Settings
from servers import Redis


def settings(redis: str, **ray: str) -> Settings:
    return Settings.model_validate({"ray": {"redis": redis, **ray}})


class TestEnvironment:
    def test_a_head_has_its_redis_without_the_password_and_a_worker_only_patience(self):
        mine = settings("db:6379,username=ray,password=hush=,ssl=true", redis_namespace="blue")
        head = head_memory.environment(mine, is_head=True)
        assert head["RAY_REDIS_ADDRESS"] == "rediss://db:6379"
        assert head["RAY_external_storage_namespace"] == "blue"
        assert "hush" not in str(head)
        worker = head_memory.environment(mine, is_head=False)
        assert set(worker) == {"RAY_gcs_rpc_server_reconnect_timeout_s"}
        assert worker.items() < head.items()

    def test_all_of_the_setting_is_read(self):
        found = head_memory.head_redis(settings("db:7,username=ray,password=a=b"))
        assert found is not None
        assert (found.host, found.port, found.username, found.ssl) == ("db", 7, "ray", False)
        assert found.password.get_secret_value() == "a=b"
        assert found.address == "db:7"

    def test_without_the_setting_nothing_is_said_to_ray(self):
        assert head_memory.environment(settings(""), is_head=True) == {}


class TestCheck:
    def test_a_redis_that_answers_is_judged_by_what_it_says(self, redis_server: Redis):
        # That of the tests keeps nothing.
        risk = head_memory.check(settings(redis_server.connection_string))
        assert risk is not None
        assert "appendonly off" in risk

    def test_a_wrong_password_is_refused_and_not_shown(self, redis_server: Redis):
        wrong = f"127.0.0.1:{redis_server.port},password=hush"
        with pytest.raises(ClusterError, match=r"ray\.redis.* does not serve us") as refused:
            head_memory.check(settings(wrong))
        assert "hush" not in str(refused.value)

    def test_a_silent_address_is_refused(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            with pytest.raises(ClusterError, match="does not serve us"):
                head_memory.check(settings(f"127.0.0.1:{taken.getsockname()[1]}"))

    def test_a_cluster_without_one_is_told_what_that_means(self):
        assert head_memory.check(settings("")) == (
            "ray.redis is not set: the cluster ends with its head"
        )

    @pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
    def test_a_redis_that_drops_keys_is_refused(self, policy: str):
        info = {"maxmemory": 1 << 30, "maxmemory_policy": policy, "aof_enabled": 1}
        with pytest.raises(ClusterError, match=f"drops keys when it is full: {policy}"):
            head_memory.judge(info, "db:1")

    @pytest.mark.parametrize(
        "info",
        [
            {"maxmemory": 1 << 30, "maxmemory_policy": "noeviction", "aof_enabled": 1},
            {"maxmemory": 0, "maxmemory_policy": "allkeys-lru", "aof_enabled": 1},
        ],
    )
    def test_one_that_keeps_all_is_fine(self, info: dict[str, Any]):
        assert head_memory.judge(info, "db:1") is None


class TestPassword:
    def test_a_process_gets_it_in_its_environment_and_its_command_line_shows_none(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        from ray._private import services

        for name in ("start_ray_process", "start_raylet"):
            monkeypatch.setattr(services, name, getattr(services, name))
        (tmp_path / "pyproject.toml").write_text("[tool.penstock]\n")
        monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(tmp_path))
        monkeypatch.setenv("PENSTOCK_RAY__REDIS", "db:1,username=ray,password=hush")
        params = SimpleNamespace(redis_username="", redis_password="")
        start_hook.keep_the_redis_password_unseen(params, True)
        assert (params.redis_username, params.redis_password) == ("ray", "hush")

        shows = "import os, sys; print(sys.argv[1:], os.environ['FLAGS_redis_password'])"
        told = tmp_path / "told"
        with told.open("w") as output:
            command = [sys.executable, "-c", shows, "--a=1", "--redis_password=hush"]
            started = services.start_ray_process(command, "gcs_server", False, stdout_file=output)
        started.process.wait(30)
        assert told.read_text().strip() == "['--a=1', '--fromenv=redis_password'] hush"

    def test_a_process_without_it_starts_as_it_did(self, monkeypatch, tmp_path: Path):
        from ray._private import services

        seen: list[Any] = []
        monkeypatch.setattr(services, "start_ray_process", lambda *a, **n: seen.append((a, n)))
        monkeypatch.setattr(services, "start_raylet", lambda *a, **n: seen.append((a, n)))
        (tmp_path / "pyproject.toml").write_text("[tool.penstock]\nray.redis = 'db:1,password=h'\n")
        monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(tmp_path))
        start_hook.keep_the_redis_password_unseen(SimpleNamespace(), True)
        services.start_ray_process(["raylet"], "raylet", fate_share=False)
        # Of all that Ray starts only GCS talks to Redis.
        services.start_raylet("a", redis_username="ray", redis_password="h", is_head_node=True)
        assert seen == [
            ((["raylet"], "raylet"), {"fate_share": False}),
            (("a",), {"redis_username": "", "redis_password": "", "is_head_node": True}),
        ]

    def test_a_worker_is_told_nothing(self):
        params = SimpleNamespace()
        start_hook.keep_the_redis_password_unseen(params, False)
        assert vars(params) == {}


class TestModule:
    def run(self, *arguments: str) -> str:
        module = "penstock.cluster.node_environment"
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        return done.stderr

    @pytest.mark.parametrize("arguments", [(), ("t", "--haed")])
    def test_other_arguments_are_refused(self, arguments: tuple[str, ...]):
        assert "--head on the head" in self.run(*arguments)
