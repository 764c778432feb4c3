"""The Ray of `penstock up`: what it opens, what it runs, what it survives, what `down` leaves."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from penstock.cluster import connection, ledger, local, processes, tokens
from penstock.cluster.jobs import submission_id_of
from penstock.cluster.ledger import JobCost
from penstock.cluster.local import LocalCluster
from penstock.cluster.settlement import settle_open_records
from penstock.errors import ClusterError
from penstock.serving.client import open_directly
from projects import Project
from waiting import wait_for

pytestmark = pytest.mark.ray

DEMO = """
import os, sys, time
import ray
from penstock.cluster.job import job
from penstock.errors import GateRefusedError

@ray.remote(num_cpus=0.5)
def add(a, b):
    if b < 0:
        raise GateRefusedError("a negative number", allowed="0 or more", next_step="count up")
    return a + b

with job("demo") as run:
    what, number = sys.argv[1], int(sys.argv[2])
    print(f"working on {what}")
    log = run.settings.storage_path / "demo.log"
    if what == "wait":
        try:
            log.write_text("begun")
            for second in range(number):
                run.progress("waiting", second, number, unit="s")
                time.sleep(1)
        finally:
            log.write_text("given back")
    if what == "count":
        # One line an attempt: shows how often a request was worked on.
        with (run.settings.storage_path / run.request_id).open("a") as file:
            file.write("once\\n")
        if number == 0 and not log.exists():
            log.touch()
            raise GateRefusedError("the first attempt")
    if what == "killed":
        os.kill(os.getpid(), 9)
    for done in range(3):
        run.progress("adding", done + 1, 3)
    run.finish({"sum": ray.get(add.remote(1, number)), "request_id": run.request_id})
"""

OF_THE_MACHINE = {"disk", "memory", "shared memory"}

RUN = """
import json, sys
from penstock.cluster.jobs import run_job
from penstock.errors import PenstockError
from penstock.settings import load_settings
try:
    print(json.dumps(run_job(load_settings(), "demo", sys.argv[2:], request_id=sys.argv[1] or None)))
except PenstockError as error:
    sys.exit(f"{type(error).__name__} {error} {error.exit_code}")
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, project: Project, ray_cluster) -> Project:
    """A project of one job, on the Ray of the test run."""
    root = tmp_path_factory.mktemp("small")
    (root / "pyproject.toml").write_text("[tool.penstock]\n")
    (root / "jobs").mkdir()
    (root / "jobs" / "demo.py").write_text(DEMO)
    return Project(root=root, storage=project.storage)


def start_demo(
    small: Project, *arguments: str, request_id: str = "", first: str = ""
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", first + RUN, request_id, *arguments],
        env=small.environment,
        cwd=small.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def demo(
    small: Project, *arguments: str, request_id: str = "", first: str = ""
) -> tuple[int, str, str]:
    process = start_demo(small, *arguments, request_id=request_id, first=first)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


# Says once of each package that Ray still has it, as it does while an earlier job ends.
AS_IF_SENT = """
from ray.dashboard.modules import dashboard_sdk
asked = set()
def has(self, uri, _has=dashboard_sdk.SubmissionClient._package_exists):
    first = uri not in asked
    asked.add(uri)
    return first or _has(self, uri)
dashboard_sdk.SubmissionClient._package_exists = has
"""


def is_serving(cluster: LocalCluster) -> bool:
    try:
        with open_directly(f"{cluster.serving_url}/healthz", timeout_s=5) as answer:
            return bool(json.load(answer) == {"status": "ok"})
    except OSError:
        return False


@pytest.fixture(scope="module")
def ran(small: Project) -> tuple[int, str, str]:
    """One job that went well: its code, output and messages."""
    return demo(small, "sum", "4")


class TestJobs:
    def test_a_job_gives_its_result_and_shows_its_log(self, ran):
        code, output, errors = ran
        assert code == 0, errors
        assert json.loads(output)["sum"] == 5
        assert "working on sum" in errors
        assert "adding: 3 of 3 rows" in errors
        assert "::penstock::" not in errors

    def test_what_a_task_refuses_ends_the_command_with_the_same_error(self, small):
        code, _, errors = demo(small, "sum", "-1")
        assert code == 1
        assert "GateRefusedError a negative number. Allowed: 0 or more. Next: count up. 3" in errors

    def test_a_job_that_is_killed_ends_as_a_shell_would_say(self, small):
        _, _, errors = demo(small, "killed", "1")
        assert "JobFailedError" in errors
        assert errors.strip().endswith("137")

    def test_what_a_killed_job_took_is_counted_and_ray_says_how_it_ended(self, small):
        request_id = f"killed-{os.getpid()}"
        demo(small, "killed", "1", request_id=request_id)
        job_id = submission_id_of("demo", request_id)

        def record() -> JobCost:
            return next(c for c in ledger.read_all(small.settings) if c.job_id == job_id)

        assert (record().kind, record().state) == ("demo", "running")
        settle_open_records(small.settings)
        assert record().state == "failed"

    def test_one_request_is_one_job_for_two_commands_at_once(self, small):
        request_id = f"request-{os.getpid()}"
        both = [start_demo(small, "count", "1", request_id=request_id) for _ in range(2)]
        outputs = [json.loads(process.communicate(timeout=120)[0]) for process in both]
        assert outputs == [{"sum": 2, "request_id": request_id}] * 2
        assert (small.storage / request_id).read_text() == "once\n"

    def test_a_request_whose_job_failed_goes_on_in_a_new_one(self, small):
        (small.storage / "demo.log").unlink(missing_ok=True)
        request_id = f"again-{os.getpid()}"
        ended = [demo(small, "count", "0", request_id=request_id) for _ in range(3)]
        assert [code for code, _, _ in ended] == [1, 0, 0]
        # The third follows the second, which went well.
        assert (small.storage / request_id).read_text() == "once\nonce\n"
        assert ended[1][1] == ended[2][1]
        assert "the first attempt" in ended[0][2]
        assert "the first attempt" not in ended[1][2]

    def test_code_that_ray_removed_at_that_moment_is_sent_again(self, small):
        # A file of its own: code that no earlier job has sent.
        (small.root / "jobs" / "new.py").write_text(f"# {os.getpid()}")
        code, output, errors = demo(small, "sum", "4", first=AS_IF_SENT)
        assert code == 0, errors
        assert json.loads(output)["sum"] == 5

    def test_without_another_attempt_such_a_job_is_lost(self, small):
        (small.root / "jobs" / "new.py").write_text(f"# {os.getpid()} again")
        once = "from penstock.cluster import jobs\njobs._MOST_LOST = 1\n"
        code, _, errors = demo(small, "sum", "4", first=AS_IF_SENT + once)
        assert code == 1
        assert "Failed to download runtime_env file package" in errors

    def test_ctrl_c_asks_the_job_to_stop_and_it_gives_back_what_it_holds(self, small):
        log = small.storage / "demo.log"
        process = start_demo(small, "wait", "60")
        wait_for(lambda: log.exists() and log.read_text() == "begun")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert "stopped on your request" in errors
        assert errors.strip().endswith("130")
        wait_for(lambda: log.read_text() == "given back", timeout_s=10)

    def test_rays_own_command_runs_the_same_job_by_hand(self, small):
        by_hand = connection.by_hand(small.settings)
        done = subprocess.run(
            [
                *(str(Path(sys.executable).parent / "ray"), "job", "submit"),
                *("--working-dir", ".", "--", "python", "jobs/demo.py", "sum", "4"),
            ],
            env={k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")} | by_hand,
            cwd=small.root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "adding: 3 of 3 rows" in done.stdout
        assert "sum: 5" in done.stdout
        assert "::penstock::" not in done.stdout


class TestListening:
    def test_every_port_is_on_loopback_also_while_serve_serves(self, ray_cluster: LocalCluster):
        wait_for(lambda: is_serving(ray_cluster))
        ours = {process.pid for process in processes.find(ray_cluster.cluster_id)}
        addresses = [
            (one.laddr.ip, psutil.Process(one.pid).name())
            for one in psutil.net_connections("inet")
            if one.status == psutil.CONN_LISTEN and one.pid in ours
        ]
        # GCS, raylet, dashboard, agents, HAProxy, replica: fewer would mean that we look past them.
        assert len(addresses) >= 12
        assert any("haproxy" in name for _, name in addresses)
        assert any("ServeReplica" in name for _, name in addresses)
        loopback = {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
        assert [one for one in addresses if one[0] not in loopback] == []

    def test_a_stranger_without_the_token_is_turned_away(self, ray_cluster: LocalCluster):
        stranger = connection.Endpoint(
            url=ray_cluster.dashboard_url, token_path=None, is_local=True
        )
        with pytest.raises(ClusterError, match="refuses our token"):
            stranger.get("/api/jobs/")

    def test_token_and_temporary_folder_are_ours_alone(self, ray_cluster: LocalCluster):
        assert stat.S_IMODE(Path(ray_cluster.token_path).stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(ray_cluster.temp_dir).stat().st_mode) == 0o700


class TestCommands:
    def test_serve_comes_up_beside_it(self, ray_cluster: LocalCluster):
        wait_for(lambda: is_serving(ray_cluster))

    def test_a_second_up_gives_the_one_that_runs(self, project: Project, ray_cluster):
        assert project.must("up", "--json").json["pid"] == ray_cluster.pid

    def test_an_address_points_at_any_ray_that_knows_our_token(
        self, project: Project, ray_cluster, tmp_path: Path
    ):
        # From a storage without a Ray of its own.
        elsewhere = Project(storage=tmp_path, more={"PENSTOCK_RAY__TOKEN_PATH": "absent"})
        asked = ("--address", ray_cluster.dashboard_url, "status", "--json")
        token = {"PENSTOCK_RAY__TOKEN_PATH": str(ray_cluster.token_path)}
        (node,) = elsewhere.must(*asked, **token).json["nodes"]
        assert node["is_head"]
        assert elsewhere.run(*asked).code != 0

    @pytest.mark.usefixtures("ran")
    def test_status_shows_the_node_the_jobs_and_what_to_export(self, project: Project):
        found = project.must("status", "--json").json
        (node,) = found["nodes"]
        assert (node["ip"], node["state"], node["is_head"]) == ("127.0.0.1", "ALIVE", True)
        assert any("jobs/demo.py" in job["entrypoint"] for job in found["jobs"])
        shown = project.must("status").stdout
        assert "export RAY_AUTH_TOKEN_PATH=" in shown

    def test_doctor_finds_all_well_here_and_in_the_cluster(self, project: Project, ray_cluster):
        done = project.run("doctor", "--json")
        checks = {check["name"]: check for check in done.json}
        wrong = {name for name, check in checks.items() if not check["ok"]}
        # How full the machine is that runs the tests is not for them to say.
        assert wrong <= OF_THE_MACHINE
        assert done.code == (1 if wrong else 0)
        assert {"shared storage", "cluster packages", "clock", "token asked for"} <= set(checks)


class TestLife:
    def test_a_killed_up_is_mended_by_the_next_and_down_ends_ours_alone(
        self, tmp_path, small, ray_cluster: LocalCluster
    ):
        own = Project(storage=tmp_path / "storage")
        cluster_id = local.cluster_id(own.settings)
        try:
            first = subprocess.Popen(
                [own.command, "up"],
                env=own.environment,
                cwd=own.root,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            wait_for(lambda: "gcs_server" in {p.name() for p in processes.find(cluster_id)})
            first.kill()
            first.wait()
            assert local.current(own.settings) is None

            cluster = own.must("up", "--json").json
            current = local.current(own.settings)
            assert current is not None
            assert current.pid == cluster["pid"]
            # Nothing of the killed attempt goes on beside it.
            roles = [p.name() for p in processes.find(cluster_id)]
            assert roles.count("gcs_server") == 1
            assert roles.count("raylet") == 1

            os.kill(cluster["pid"], signal.SIGKILL)
            wait_for(lambda: local.current(own.settings) is None, timeout_s=5)
            refused = own.run("status")
            assert refused.code == 1
            assert "penstock up" in refused.stderr

            assert own.must("down", "--json").json == {"was_up": True}
            assert processes.find(cluster_id) == []
            assert not Path(cluster["temp_dir"]).exists()
            assert own.must("down", "--json").json == {"was_up": False}
            # The Ray of the test run, on the same machine, goes on as it was.
            assert local.current(small.settings) == ray_cluster
            wait_for(lambda: is_serving(ray_cluster))
        finally:
            local.down(own.settings)

    def test_doctor_works_with_no_ray_up(self, tmp_path):
        done = Project(storage=tmp_path / "storage").run("doctor", "--json")
        by_name = {check["name"]: check for check in done.json}
        assert done.code == (0 if all(check["ok"] for check in done.json) else 1)
        assert by_name["cluster"]["found"] == "no Ray is up for this project"
        assert by_name["storage"]["ok"]

    def test_doctor_names_a_token_that_others_can_read(self, tmp_path):
        own = Project(storage=tmp_path / "storage")
        token = tokens.ensure(tokens.own_token_path(own.settings))
        token.chmod(0o644)
        done = own.run("doctor", "--json")
        (wrong,) = (check for check in done.json if check["name"] == "token")
        assert done.code == 1
        assert not wrong["ok"]
        assert f"chmod 600 {token}" in wrong["next_step"]
