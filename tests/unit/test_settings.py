from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from penstock.errors import SettingsError
from penstock.settings import Settings, find_project_root, known_keys, load_settings


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import os

    for name in list(os.environ):
        if name.startswith("PENSTOCK_"):
            monkeypatch.delenv(name)
    (tmp_path / "pyproject.toml").write_text("[tool.penstock]\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project: Path, body: str) -> None:
    (project / "pyproject.toml").write_text(f"[tool.penstock]\n{body}\n")


class TestLoadSettings:
    def test_the_local_profile_needs_nothing_but_files(self, project: Path):
        settings = load_settings()
        assert settings.profile == "local"
        assert settings.storage_path == project / ".penstock"
        assert settings.registry_url.startswith("sqlite:///")
        assert settings.tracking_uri.startswith("sqlite:///")

    def test_finds_the_project_from_a_folder_below(self, project: Path, monkeypatch):
        (project / "a" / "b").mkdir(parents=True)
        monkeypatch.chdir(project / "a" / "b")
        assert load_settings().project_root == project

    def test_the_environment_wins_over_the_file(self, project: Path, monkeypatch):
        write(project, "serving.port = 9001\nray.num_logical_cpus = 3")
        monkeypatch.setenv("PENSTOCK_SERVING__PORT", "9002")
        settings = load_settings()
        assert (settings.serving.port, settings.ray.num_logical_cpus) == (9002, 3)

    def test_an_unknown_key_is_refused_and_the_nearest_offered(self, project: Path):
        write(project, "storage.rot = '/x'")
        with pytest.raises(SettingsError, match=r"storage\.rot.*did you mean storage\.root\?"):
            load_settings()

    def test_an_unknown_variable_is_refused_and_the_nearest_offered(self, project, monkeypatch):
        monkeypatch.setenv("PENSTOCK_STORAGE__ROT", "/x")
        with pytest.raises(SettingsError, match=r"did you mean PENSTOCK_STORAGE__ROOT\?"):
            load_settings()

    def test_says_where_a_wrong_value_stands(self, project: Path):
        write(project, "serving.port = 'high'")
        with pytest.raises(SettingsError, match=r"serving\.port is 'high'.*PENSTOCK_SERVING__PORT"):
            load_settings()

    def test_refuses_to_listen_beyond_loopback(self, project: Path):
        write(project, "serving.host = '0.0.0.0'")
        with pytest.raises(SettingsError, match=r"beyond loopback.*require_key.*tls.*public_names"):
            load_settings()

    @pytest.mark.parametrize("missing", ["require_key", "tls", "public_names"])
    def test_beyond_loopback_it_takes_all_of_keys_tls_and_names(self, project: Path, missing: str):
        given = {
            "require_key": "true",
            "tls": '{certificate = "/c.pem", key = "/k.pem"}',
            "public_names": '["models.example", "10.0.0.5"]',
        }

        def write_given() -> None:
            lines = [f"serving.{name} = {value}" for name, value in given.items()]
            write(project, "serving.host = '10.0.0.5'\n" + "\n".join(lines))

        write_given()
        assert load_settings().serving.plain_host == "127.0.0.1"
        del given[missing]
        write_given()
        with pytest.raises(SettingsError, match=missing):
            load_settings()

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ("serving.host = 'models.example'", "an IP address"),
            ("serving.host = '127.0.0.9'", "beyond loopback"),
            ("serving.host = '::%eth0'", "an IP address"),
            ("serving.public_names = ['models.example']", "needs serving.require_key"),
            ("serving.tls.certificate = '/c.pem'", "certificate and key"),
            ("serving.tls = {certificate = 'c.pem', key = '/k.pem'}", "an absolute path"),
            ("serving.tls = {certificate = '/c', key = '/k', port = 8000}", "are both 8000"),
            ("serving.jwt.issuer = 'https://id.example'", "one of jwks_file and jwks_url"),
            ("serving.jwt.jwks_url = 'http://id.example/keys'", "an https URL"),
            ("serving.jwt.jwks_url = 'https://me:secret@id.example/keys'", "no password"),
            ("serving.jwt.jwks_url = 'file:///etc/passwd'", "an https URL"),
            (
                "serving.jwt = {issuer = 'i', audience = 'a', jwks_file = '/j'}",
                "needs serving.require_key",
            ),
            ("access.roles = {alice = 'owner'}", "operator"),
        ],
    )
    def test_who_may_reach_it_is_declared_whole_or_not_at_all(self, project, line: str, why: str):
        write(project, line)
        with pytest.raises(SettingsError, match=why):
            load_settings()

    @pytest.mark.parametrize(
        "name", ["Models.Example", "a b", "models.example:8443", "", "-x", "::1"]
    )
    def test_what_no_client_sends_as_host_is_no_public_name(self, project: Path, name: str):
        write(project, f"serving.require_key = true\nserving.public_names = ['{name}']")
        with pytest.raises(SettingsError, match="DNS names"):
            load_settings()

    def test_a_replica_is_told_where_its_ingress_listens_by_no_job(self, project, monkeypatch):
        write(
            project,
            "serving.host = '0.0.0.0'\nserving.require_key = true\n"
            "serving.tls = {certificate = '/c.pem', key = '/k.pem'}\n"
            "serving.public_names = ['models.example']",
        )
        settings = load_settings()
        sent = settings.job_environment()
        assert not [name for name in sent if "HOST" in name or "TLS" in name]
        assert sent["PENSTOCK_SERVING__PUBLIC_NAMES"] == '["models.example"]'
        # As in a replica that is deployed from a project that asks for no key.
        write(project, "")
        for name, value in settings.ingress_environment().items():
            monkeypatch.setenv(name, value)
        assert load_settings().serving == settings.serving
        monkeypatch.setenv("PENSTOCK_SERVING__REQUIRE_KEY", "False")
        with pytest.raises(SettingsError, match="require_key"):
            load_settings()

    def test_the_cluster_profile_names_the_servers_it_lacks(self, project: Path):
        write(project, "profile = 'cluster'")
        with pytest.raises(
            SettingsError,
            match=r"registry_url and feature_store\.online_store = redis and tracking",
        ):
            load_settings()
        write(
            project,
            """profile = 'cluster'
tracking.uri = 'http://h'
feature_store.registry_url = 'postgresql://h/f'""",
        )
        with pytest.raises(SettingsError, match=r"needs feature_store\.online_store = redis\."):
            load_settings()

    @pytest.mark.parametrize(
        "address",
        [
            "head:8265",
            "ray://head:10001",
            "file:///etc/passwd",
            "http://",
            "http://h:x",
            "http://[h",
        ],
    )
    def test_a_ray_address_that_is_no_dashboard_is_refused(self, project: Path, address: str):
        write(project, f"ray.address = '{address}'")
        with pytest.raises(SettingsError, match=r"ray\.address is .*http://127"):
            load_settings()

    @pytest.mark.parametrize(
        "address",
        ["redis://:hush@h:6379", "h,password=hush", "hush", "hush:6379@h", "h:1,password=hush,x"],
    )
    def test_a_malformed_redis_is_refused_and_not_shown(self, project: Path, address: str):
        write(project, f"feature_store.redis = '{address}'")
        with pytest.raises(SettingsError, match=r"host:port\[") as refused:
            load_settings()
        assert "hush" not in str(refused.value)

    @pytest.mark.parametrize(
        "address",
        ["redis://:hush@h:6379", "h:1,password=hush,db=1", "h:1,i:2", "h:1,password=hush,ssl=yes"],
    )
    def test_a_malformed_redis_of_the_head_is_refused_and_not_shown(self, project, address: str):
        write(project, f"ray.redis = '{address}'")
        with pytest.raises(SettingsError, match=r"ray\.redis, .*one server") as refused:
            load_settings()
        assert "hush" not in str(refused.value)

    def test_a_section_that_is_none_does_not_show_its_secret(self, project: Path):
        write(project, "tracking = 'postgresql://u:hush@h/db'")
        with pytest.raises(SettingsError) as refused:
            load_settings()
        assert "hush" not in str(refused.value)

    def test_a_password_is_in_no_representation(self, project: Path, monkeypatch):
        monkeypatch.setenv("PENSTOCK_TRACKING__URI", "postgresql://u:hush@h/db")
        settings = load_settings()
        assert settings.tracking_uri == "postgresql://u:hush@h/db"
        assert "hush" not in repr(settings) + str(settings.model_dump_json())
        assert "hush" not in str(settings.job_environment())

    def test_kafkas_options_are_librdkafkas_and_in_no_representation(self, project, monkeypatch):
        monkeypatch.setenv(
            "PENSTOCK_KAFKA",
            '{"bootstrap.servers": "h:1", "sasl.password": "hush", "x": true, "session.timeout.ms": 7000}',
        )
        settings = load_settings()
        plain = {name: value.get_secret_value() for name, value in settings.kafka.items()}
        assert (plain["sasl.password"], plain["x"]) == ("hush", "true")
        assert plain["session.timeout.ms"] == "7000"
        assert "hush" not in repr(settings) + settings.model_dump_json()
        assert "PENSTOCK_KAFKA" not in settings.job_environment()

    @pytest.mark.parametrize(
        "kafka",
        [
            '{"sasl.password": "hush"}',
            '["hush"]',
            '{"bootstrap.servers": ["hush"]}',
            "hush",
            "{hush",
        ],
    )
    def test_a_malformed_kafka_is_refused_and_not_shown(self, project, monkeypatch, kafka: str):
        monkeypatch.setenv("PENSTOCK_KAFKA", kafka)
        with pytest.raises(SettingsError, match="PENSTOCK_KAFKA") as refused:
            load_settings()
        assert "hush" not in str(refused.value)

    def test_pushed_events_wait_where_the_registry_is(self, project: Path, monkeypatch):
        assert load_settings().push_log_url.endswith(".penstock/pushed_events.db")
        url = "postgresql+psycopg://u:p@h/feast"
        monkeypatch.setenv("PENSTOCK_FEATURE_STORE__REGISTRY_URL", url)
        assert load_settings().push_log_url == url

    def test_a_job_runs_under_the_settings_of_its_command(self, project: Path, monkeypatch):
        write(project, "feature_repo = 'repo'\nserving.max_body_bytes = 5000")
        monkeypatch.setenv("PENSTOCK_FEATURE_REPO", str(project / "declared"))
        monkeypatch.setenv("PENSTOCK_SERVING__MAX_BODY_BYTES", "6000")
        monkeypatch.setenv("PENSTOCK_RAY__ADDRESS", "http://head:8265")
        monkeypatch.setenv("PENSTOCK_COST__BUDGETS_PER_MONTH", '{"churn": 12.5}')
        sent = load_settings().job_environment()
        assert sent["PENSTOCK_FEATURE_REPO"] == "declared"
        assert sent["PENSTOCK_FEATURE_STORE__ONLINE_STORE"] == "sqlite"
        assert sent["PENSTOCK_SERVING__MAX_BODY_BYTES"] == "6000"
        assert sent["PENSTOCK_COST__BUDGETS_PER_MONTH"] == '{"churn": 12.5}'
        assert not [name for name in sent if "RAY" in name or "PORT" in name or "URL" in name]
        # What is sent is what the other side takes.
        for name, value in sent.items():
            monkeypatch.setenv(name, value)
        assert load_settings().job_environment() == sent

    def test_broken_toml_is_named(self, project: Path):
        (project / "pyproject.toml").write_text("[tool.penstock\n")
        with pytest.raises(SettingsError, match="not readable TOML"):
            load_settings()

    @hypothesis_settings(deadline=None)
    @given(value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
        max_leaves=4,
    ), key=st.sampled_from([k.split(".")[0] for k in known_keys()]) | st.text(min_size=1))  # fmt: skip
    def test_any_value_is_taken_or_refused_with_a_message(self, value: object, key: str):
        from pydantic import ValidationError

        from penstock.settings import _explain

        try:
            _ = Settings(**{"project_root": Path("/p"), key: value})
        except ValidationError as error:
            assert str(_explain(error, Path("pyproject.toml")))


class TestFindProjectRoot:
    def test_says_what_to_do_where_there_is_none(self, tmp_path: Path):
        with pytest.raises(SettingsError, match="PENSTOCK_PROJECT_ROOT"):
            find_project_root(tmp_path)
