"""cluster.yaml against Ray's own schema and prepare step, and its commands in a real shell."""

import copy
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from projects import REPO_ROOT
from servers import Redis

NEEDED_BY_SERVE = (
    "RAY_SERVE_ENABLE_HA_PROXY",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED",
    "RAY_SERVE_HAPROXY_RETRY_ON",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S",
)


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    loaded = yaml.safe_load((REPO_ROOT / "cluster.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config

    return dict(prepare_config(copy.deepcopy(written)))


class TestSchema:
    def test_rays_schema_takes_the_prepared_config(self, prepared):
        from ray.autoscaler._private.util import validate_config

        validate_config(prepared)

    def test_rays_schema_would_not_take_a_misspelt_key(self, prepared):
        from jsonschema import ValidationError
        from ray.autoscaler._private.util import validate_config

        with pytest.raises(ValidationError, match="idle_timeout_minute"):
            validate_config(prepared | {"idle_timeout_minute": 1})

    def test_rays_prepare_step_keeps_our_commands_for_every_node(self, prepared, written):
        # Ray adds boto3 to the head, which starts the others.
        *ours, boto3 = prepared["head_setup_commands"]
        assert ours == written["setup_commands"]
        assert "boto3" in boto3
        assert prepared["worker_setup_commands"] == written["setup_commands"]
        assert prepared["worker_start_ray_commands"] == written["worker_start_ray_commands"]

    def test_there_is_a_head_a_cpu_worker_and_a_spot_gpu_worker(self, prepared):
        types = prepared["available_node_types"]
        assert prepared["head_node_type"] == "head"
        assert types["head"]["max_workers"] == 0
        assert types["cpu"]["max_workers"] > types["cpu"]["min_workers"]
        assert types["gpu-spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
        assert types["gpu-spot"]["min_workers"] == 0

    def test_every_local_file_it_sends_is_one_that_the_head_of_the_file_names(self, written):
        preface = (REPO_ROOT / "cluster.yaml").read_text().split("cluster_name:")[0]
        for local_path in written["file_mounts"].values():
            assert local_path == "." or local_path in preface

    def test_the_head_of_the_file_names_every_setting_that_the_profile_needs(self):
        preface = (REPO_ROOT / "cluster.yaml").read_text().split("cluster_name:")[0]
        for name in ("REGISTRY_URL", "ONLINE_STORE", "REDIS"):
            assert f"PENSTOCK_FEATURE_STORE__{name}" in preface
        assert "PENSTOCK_TRACKING__URI" in preface

    def test_the_image_has_our_ray_and_our_python(self, written):
        constraints = (REPO_ROOT / "constraints.txt").read_text().splitlines()
        (ray_version,) = (c.partition("==")[2] for c in constraints if c.startswith("ray=="))
        images = {
            written["docker"]["image"],
            written["available_node_types"]["gpu-spot"]["docker"]["worker_image"],
        }
        for image in images:
            assert image.startswith(f"rayproject/ray:{ray_version}-py311-")


class TestSecurity:
    def test_every_node_is_in_our_security_group_with_encrypted_disks(self, prepared):
        for node_type in prepared["available_node_types"].values():
            config = node_type["node_config"]
            assert config["SecurityGroupIds"] == ["sg-REPLACE"]
            assert config["MetadataOptions"]["HttpTokens"] == "required"
            assert all(disk["Ebs"]["Encrypted"] for disk in config["BlockDeviceMappings"])

    def test_nothing_but_the_two_named_places_waits_to_be_filled_in(self):
        text = (REPO_ROOT / "cluster.yaml").read_text()
        body = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
        assert body.count("REPLACE") == 2


class Node:
    """A home folder as file_mounts make it, where a node's commands run in a real shell."""

    def __init__(self, home: Path):
        self.home = home
        (home / ".ray").mkdir(parents=True)
        (home / ".penstock").mkdir()
        (home / "penstock").symlink_to(REPO_ROOT)
        self.token = home / ".ray" / "auth_token"
        self.token.write_text("secret")
        self.token.chmod(0o600)
        self.env_file = home / ".penstock" / "cluster.env"
        self.env_file.write_text(
            "PENSTOCK_PROFILE='cluster'\n"
            f"PENSTOCK_STORAGE__ROOT='{home}/storage'\n"
            "PENSTOCK_FEATURE_STORE__REGISTRY_URL='postgresql+psycopg://u:p w$x@db/features'\n"
            "PENSTOCK_TRACKING__URI='postgresql+psycopg://u:p@db/mlflow'\n"
            "PENSTOCK_FEATURE_STORE__ONLINE_STORE='redis'\n"
            "PENSTOCK_FEATURE_STORE__REDIS='cache:6379,password=p'\n"
        )
        programs = home / "bin"
        programs.mkdir()
        # Stands for `ray`: writes down what it was started with.
        ray = programs / "ray"
        ray.write_text(
            f"#!{sys.executable}\n"
            "import json, os, sys\n"
            f"with open({str(home / 'started.jsonl')!r}, 'a') as log:\n"
            "    log.write(json.dumps({'args': sys.argv[1:], 'env': dict(os.environ)}) + '\\n')\n"
        )
        ray.chmod(0o755)

    def run(self, commands: list[str]) -> str:
        """Run each command as `ray up` does: a shell of its own, the next only after success.

        Gives what the failing command said, or nothing.
        """
        environment = {
            "PATH": f"{self.home / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "RAY_HEAD_IP": "10.0.0.1",
        }
        for command in commands:
            done = subprocess.run(
                ["bash", "-c", command],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                return done.stderr or f"ended with {done.returncode}"
        return ""

    @property
    def started(self) -> list[dict[str, Any]]:
        log = self.home / "started.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [one for one in map(json.loads, lines) if one["args"][0] == "start"]


@pytest.mark.parametrize("which", ["head_start_ray_commands", "worker_start_ray_commands"])
class TestStartCommands:
    def test_ray_starts_with_token_settings_and_serves_variables(self, tmp_path, prepared, which):
        node = Node(tmp_path / "home")
        assert node.run(prepared[which]) == ""
        (started,) = node.started
        env = started["env"]
        assert env["RAY_AUTH_MODE"] == "token"
        assert env["RAY_AUTH_TOKEN_PATH"] == str(node.token)
        assert env["PENSTOCK_PROFILE"] == "cluster"
        assert env["PENSTOCK_STORAGE__ROOT"] == f"{node.home}/storage"
        assert env["PENSTOCK_FEATURE_STORE__REGISTRY_URL"].endswith("p w$x@db/features")
        assert all(env[name] for name in NEEDED_BY_SERVE)
        # Made on the node itself, where no test's folder is.
        shutil.rmtree(Path(env["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent.parent)
        is_head = which.startswith("head")
        assert ("--dashboard-host=127.0.0.1" in started["args"]) == is_head
        assert ("--address=10.0.0.1:6379" in started["args"]) == (not is_head)

    def test_a_node_that_would_keep_online_rows_in_sqlite_does_not_start(
        self, tmp_path, prepared, which
    ):
        node = Node(tmp_path / "home")
        lines = node.env_file.read_text().splitlines()
        node.env_file.write_text("\n".join(line for line in lines if "ONLINE_STORE" not in line))
        assert "feature_store.online_store = redis" in node.run(prepared[which])
        assert node.started == []

    def test_a_node_without_its_token_does_not_start(self, tmp_path, prepared, which):
        node = Node(tmp_path / "home")
        node.token.unlink()
        assert "auth_token cannot be read" in node.run(prepared[which])
        assert node.started == []

    def test_a_node_whose_token_others_can_read_does_not_start(self, tmp_path, prepared, which):
        node = Node(tmp_path / "home")
        node.token.chmod(0o644)
        assert "can be read by others" in node.run(prepared[which])
        assert node.started == []


class TestHeadsMemory:
    def started(self, home: Path, commands: list[str], redis: str) -> tuple[str, list[dict]]:
        node = Node(home)
        with node.env_file.open("a") as file:
            file.write(f"PENSTOCK_RAY__REDIS='{redis}'\n")
        return node.run(commands), node.started

    def test_the_head_starts_on_its_redis_and_a_worker_knows_to_wait(
        self, tmp_path, prepared, redis_server: Redis
    ):
        _, (head,) = self.started(
            tmp_path / "head", prepared["head_start_ray_commands"], redis_server.connection_string
        )
        assert head["env"]["RAY_REDIS_ADDRESS"] == f"127.0.0.1:{redis_server.port}"
        assert redis_server.password not in str(head["args"])
        _, (worker,) = self.started(
            tmp_path / "worker",
            prepared["worker_start_ray_commands"],
            redis_server.connection_string,
        )
        assert "RAY_REDIS_ADDRESS" not in worker["env"]
        for node in (head, worker):
            assert int(node["env"]["RAY_gcs_rpc_server_reconnect_timeout_s"]) > 3600
            folder = Path(node["env"]["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent.parent
            shutil.rmtree(folder, ignore_errors=True)

    def test_a_head_whose_redis_does_not_answer_does_not_start(self, tmp_path, prepared):
        said, started = self.started(
            tmp_path / "home", prepared["head_start_ray_commands"], "127.0.0.1:1,password=hush"
        )
        assert "(ray.redis) does not serve us" in said
        assert "hush" not in said
        assert started == []


def test_setup_closes_the_token_and_the_settings(tmp_path, prepared):
    node = Node(tmp_path / "home")
    for path in (node.token, node.env_file):
        path.chmod(0o644)
    assert node.run(prepared["setup_commands"][:1]) == ""
    for path in (node.token, node.env_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
