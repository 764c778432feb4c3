from pathlib import Path

from penstock.cluster.runtime_env import runtime_env
from penstock.settings import Settings


class TestRuntimeEnv:
    def test_no_password_travels_with_a_job(self, tmp_path):
        settings = Settings(
            project_root=tmp_path,
            profile="cluster",
            feature_store={
                "registry_url": "postgresql://u:hunter2@db/f",
                "online_store": "redis",
                "redis": "cache:6379,password=hunter2",
            },
            tracking={"uri": "postgresql://u:hunter2@db/m"},
        )
        assert "hunter2" not in str(runtime_env(settings))

    def test_the_package_goes_along_and_nothing_is_installed(self, tmp_path):
        env = runtime_env(Settings(project_root=tmp_path))
        (package,) = env["py_modules"]
        assert (Path(package) / "cluster" / "job.py").is_file()
        assert not {"pip", "uv", "conda"} & set(env)

    def test_the_job_is_told_where_the_storage_is(self, tmp_path):
        env = runtime_env(Settings(project_root=tmp_path), {"MORE": "1"})
        assert env["env_vars"]["PENSTOCK_STORAGE__ROOT"] == str(tmp_path / ".penstock")
        assert env["env_vars"]["MORE"] == "1"

    def test_a_storage_inside_the_project_stays_behind(self, tmp_path):
        settings = Settings(project_root=tmp_path, storage={"root": "var/store"})
        assert "/var/store" in runtime_env(settings)["excludes"]

    def test_ray_packs_declarations_and_jobs_and_no_data(self, tmp_path):
        # Ray's own packer decides what the patterns mean.
        from zipfile import ZipFile

        from ray._private.runtime_env.packaging import create_package

        wanted = {"pyproject.toml", "jobs/train.py", "feature_repo/data/views.py"}
        unwanted = {
            ".git/config",
            ".venv/lib/x.py",
            ".penstock/tables/t.parquet",
            "tests/test_x.py",
            "data/payments.csv",
            "jobs/part.parquet",
        }
        for name in wanted | unwanted:
            file = tmp_path / "project" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("x")
        env = runtime_env(Settings(project_root=tmp_path / "project"))
        target = tmp_path / "package.zip"
        create_package(env["working_dir"], target, include_gitignore=True, excludes=env["excludes"])
        with ZipFile(target) as package:
            files = {name for name in package.namelist() if not name.endswith("/")}
        assert files == wanted

    def test_ray_packs_the_whole_package(self, tmp_path):
        # Ray holds the excludes against the package too: one for a folder of the project may hit
        # a room of ours.
        from zipfile import ZipFile

        from ray._private.runtime_env.packaging import create_package

        env = runtime_env(Settings(project_root=tmp_path))
        (package,) = map(Path, env["py_modules"])
        target = tmp_path / "package.zip"
        create_package(
            str(package),
            target,
            include_gitignore=True,
            include_parent_dir=True,
            excludes=env["excludes"],
        )
        with ZipFile(target) as packed:
            files = {name for name in packed.namelist() if name.endswith(".py")}
        assert files == {str(p.relative_to(package.parent)) for p in package.rglob("*.py")}
