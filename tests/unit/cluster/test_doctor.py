import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from penstock.cluster import doctor, tokens
from penstock.cluster.connection import Endpoint
from penstock.errors import ClusterError
from penstock.settings import Settings


class TestMachine:
    @pytest.mark.parametrize(("found", "ok"), [((3, 11, 7), True), ((3, 10, 1), False)])
    def test_an_old_python_is_found(self, found, ok):
        assert doctor.check_python(found).ok is ok

    def test_a_missing_package_is_named(self):
        check = doctor.check_packages({"ray": "2.60.0", "feast": "missing"})
        assert not check.ok
        assert check.found == "missing: feast"

    def test_a_full_disk_says_how_much_to_free(self, tmp_path):
        assert doctor.check_disk(tmp_path / "not" / "yet", least_bytes=1).ok
        check = doctor.check_disk(tmp_path, least_bytes=1 << 60)
        assert not check.ok
        assert "GiB" in check.next_step

    def test_too_little_memory_is_found(self):
        assert doctor.check_memory(least_bytes=1).ok
        assert not doctor.check_memory(least_bytes=1 << 60).ok

    def test_a_storage_that_is_a_file_is_found(self, tmp_path):
        (tmp_path / "file").write_text("x")
        check = doctor.check_storage(tmp_path / "file")
        assert not check.ok
        assert "storage.root" in check.next_step
        assert doctor.check_storage(tmp_path / "new").ok
        assert list((tmp_path / "new").iterdir()) == []

    def test_an_object_store_beyond_shared_memory_is_found(self, tmp_path):
        huge = Settings(project_root=tmp_path, ray={"object_store_memory_bytes": 1 << 60})
        check = doctor.check_shared_memory(huge, tmp_path)
        assert not check.ok
        assert "--shm-size" in check.next_step


class TestToken:
    def test_none_yet_is_no_illness(self, tmp_path):
        assert doctor.check_token(tmp_path / "token").ok

    def test_one_that_others_can_read_is(self, tmp_path):
        path = tokens.ensure(tmp_path / "token")
        assert doctor.check_token(path).ok
        path.chmod(0o640)
        assert "chmod 600" in doctor.check_token(path).next_step


class TestServers:
    def test_a_broken_sqlite_file_is_a_finding_and_no_crash(self, tmp_path):
        path = tmp_path / "registry.db"
        path.write_bytes(b"no database" * 100)
        check = doctor._guarded(
            "feature registry",
            lambda: doctor.check_database("feature registry", f"sqlite:///{path}"),
        )
        assert not check.ok
        assert "not a database" in check.found

    def test_a_good_one_is_found_and_an_absent_one_not_made(self, tmp_path):
        with sqlite3.connect(tmp_path / "a.db") as database:
            database.execute("CREATE TABLE t (x)")
        assert doctor.check_database("tracking", f"sqlite:///{tmp_path / 'a.db'}").ok
        assert doctor.check_database("tracking", f"sqlite:///{tmp_path / 'b.db'}").ok
        assert not (tmp_path / "b.db").exists()

    def test_a_silent_postgres_is_named_without_its_password(self):
        url = "postgresql+psycopg://penstock:hunter2@127.0.0.1:9/features"
        check = doctor.check_database("feature registry", url)
        assert not check.ok
        assert "127.0.0.1:9/features" in check.found
        assert "hunter2" not in str(check)

    @pytest.mark.parametrize("password", ["hunt/er2", "hunt#er2", "hunt?er2", "hunt@e:r2"])
    def test_a_password_that_breaks_its_url_is_not_shown(self, password):
        url = f"postgresql+psycopg://penstock:{password}@127.0.0.1:9/features"
        check = doctor.check_database("feature registry", url)
        assert not check.ok
        assert "hunt" not in str(check)
        assert "r2" not in str(check)

    def test_a_silent_redis_is_named_without_its_password(self):
        check = doctor.check_redis("127.0.0.1:9,password=hunter2")
        assert not check.ok
        assert "hunter2" not in str(check)

    @pytest.mark.servers
    def test_living_ones_are_found_well(self, postgres, redis_server):
        assert doctor.check_database("tracking", postgres.url()).ok
        assert doctor.check_redis(redis_server.connection_string).ok

    @pytest.mark.servers
    def test_a_wrong_password_is_found(self, postgres, redis_server):
        url = postgres.url().replace(postgres.password, "wrong")
        assert "password" in doctor.check_database("tracking", url).found
        assert not doctor.check_redis(f"127.0.0.1:{redis_server.port},password=wrong").ok


class Answering(BaseHTTPRequestHandler):
    code = 200

    def do_GET(self) -> None:
        self.send_response(self.code)
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def dashboard() -> Iterator[Endpoint]:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Endpoint(
            url=f"http://127.0.0.1:{server.server_port}", token_path=None, is_local=False
        )
        server.shutdown()


class TestTokenAskedFor:
    def test_a_ray_open_to_everybody_is_found(self, dashboard, monkeypatch):
        monkeypatch.setattr(Answering, "code", 200)
        assert "anybody" in doctor.check_token_is_asked_for(dashboard).found

    def test_one_that_refuses_strangers_is_well(self, dashboard, monkeypatch):
        monkeypatch.setattr(Answering, "code", 401)
        assert doctor.check_token_is_asked_for(dashboard).ok

    def test_one_that_fails_proves_nothing(self, dashboard, monkeypatch):
        monkeypatch.setattr(Answering, "code", 500)
        with pytest.raises(ClusterError, match="500"):
            doctor.check_token_is_asked_for(dashboard)


class TestDiagnose:
    def test_with_no_ray_up_the_machine_is_looked_at(self, tmp_path):
        checks = {check.name: check for check in doctor.diagnose(Settings(project_root=tmp_path))}
        assert checks["storage"].ok
        assert checks["cluster"].ok
        assert "penstock up" in checks["cluster"].next_step

    def test_a_named_ray_that_is_silent_is_an_illness(self, tmp_path):
        settings = Settings(project_root=tmp_path, ray={"address": "http://127.0.0.1:9"})
        cluster = doctor.diagnose(settings)[-1]
        assert cluster.name == "cluster"
        assert not cluster.ok
