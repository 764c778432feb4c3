import pytest

from penstock.cluster import connection
from penstock.errors import ClusterError
from penstock.settings import Settings


class TestEndpoint:
    def test_with_no_ray_up_it_says_how_to_start_one(self, tmp_path):
        with pytest.raises(ClusterError, match=r"no Ray is up.*penstock up"):
            connection.endpoint(Settings(project_root=tmp_path))

    def test_the_token_of_another_ray_is_the_one_that_the_settings_name(self, tmp_path):
        (tmp_path / "their_token").write_text("theirs\n")
        ray = {"address": "http://head:8265/", "token_path": "their_token"}
        target = connection.endpoint(Settings(project_root=tmp_path, ray=ray))
        assert target.url == "http://head:8265"
        assert target.headers == {"Authorization": "Bearer theirs"}

    def test_or_the_one_where_ray_itself_looks(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        settings = Settings(project_root=tmp_path, ray={"address": "http://head:8265"})
        assert connection.endpoint(settings).headers == {}
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("home")
        assert connection.endpoint(settings).headers == {"Authorization": "Bearer home"}

    def test_a_driver_of_a_ray_elsewhere_is_refused_with_the_way_to_go(self, tmp_path):
        settings = Settings(project_root=tmp_path, ray={"address": "http://head:8265"})
        with pytest.raises(ClusterError, match="as a job"):
            connection.connect(settings)


def test_what_is_exported_for_rays_own_commands_reaches_the_same_ray(tmp_path):
    (tmp_path / "t").write_text("x")
    ray = {"address": "http://head:8265", "token_path": "t"}
    assert connection.by_hand(Settings(project_root=tmp_path, ray=ray)) == {
        "RAY_API_SERVER_ADDRESS": "http://head:8265",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "t"),
    }
