from pathlib import Path

import pytest
from hypothesis import given
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
        with pytest.raises(SettingsError, match="only loopback"):
            load_settings()

    def test_the_cluster_profile_names_the_servers_it_lacks(self, project: Path):
        write(project, "profile = 'cluster'")
        with pytest.raises(SettingsError, match=r"feature_store\.registry_url and tracking\.uri"):
            load_settings()

    def test_a_password_is_in_no_representation(self, project: Path, monkeypatch):
        monkeypatch.setenv("PENSTOCK_TRACKING__URI", "postgresql://u:hush@h/db")
        settings = load_settings()
        assert settings.tracking_uri == "postgresql://u:hush@h/db"
        assert "hush" not in repr(settings) + str(settings.model_dump_json())
        assert "hush" not in str(settings.job_environment())

    def test_broken_toml_is_named(self, project: Path):
        (project / "pyproject.toml").write_text("[tool.penstock\n")
        with pytest.raises(SettingsError, match="not readable TOML"):
            load_settings()

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
