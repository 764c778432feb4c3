import functools
from pathlib import Path

import pytest

from bundles import add_version
from penstock.errors import NotFoundError, PenstockError
from penstock.registry.package import verify
from penstock.registry.versions import ModelRegistry, list_versions, resolve
from penstock.settings import Settings


class TestVersions:
    def test_a_registered_version_is_found_with_all_its_facts(self, project):
        add_version(project, "run-1", average_precision=0.6)
        (version,) = list_versions(project, "spills")
        assert (version.version, version.run_id, version.aliases) == (1, "run-1", ("challenger",))
        assert version.metrics["average_precision"] == 0.6
        assert verify(Path(version.path), project, digest=version.digest).digest == version.digest

    def test_an_entry_that_is_not_sealed_is_seen_by_nobody(self, project):
        add_version(project, "run-1")
        ModelRegistry(project).add_entry("spills", "run-2")
        assert [item.version for item in list_versions(project, "spills")] == [1]
        with pytest.raises(NotFoundError, match="no version 2"):
            resolve(project, "spills", 2)

    def test_the_same_run_finds_its_own_unfinished_entry(self, project):
        registry = ModelRegistry(project)
        entry = registry.add_entry("spills", "run-1")
        assert registry.find_entry("spills", "run-1") == entry
        assert registry.find_entry("spills", "run-2") is None

    def test_numbers_skip_folders_that_another_database_left(self, project):
        (project.models_path / "spills/4").mkdir(parents=True)
        entry = ModelRegistry(project).add_entry("spills", "run-1")
        assert entry.version == 5
        assert ModelRegistry(project).find_entry("spills", "run-1") == entry

    def test_numbers_of_versions_deleted_in_mlflow_are_not_used_again(self, project):
        registry = ModelRegistry(project)
        registry.add_entry("spills", "run-1")
        registry._client.delete_model_version("spills", "1")
        entry = registry.add_entry("spills", "run-2")
        assert entry.version > 1
        assert registry.find_entry("spills", "run-2") == entry

    def test_every_page_of_models_and_versions_is_read(self, project):
        registry = ModelRegistry(project)
        for name in ("spills", "leaks", "floods", "Not-Ours"):
            registry._client.create_registered_model(name)
        for number in range(3):
            registry.add_entry("spills", f"run-{number}")
        for search in ("search_registered_models", "search_model_versions"):
            whole = getattr(registry._client, search)
            setattr(registry._client, search, functools.partial(whole, max_results=2))
        assert registry.names() == ["floods", "leaks", "spills"]
        assert registry.find_entry("spills", "run-0").version == 1

    @pytest.mark.parametrize("name", ["a/b", "", "x:y", "../x", "spill"])
    def test_a_name_that_no_model_has_is_the_users_mistake(self, project, name):
        add_version(project, "run-1")
        with pytest.raises(NotFoundError, match="spills") as caught:
            resolve(project, name)
        assert caught.value.exit_code == 2

    @pytest.mark.parametrize("name", ["../evil", "a/b", "", "Spills", "a b"])
    def test_a_name_that_could_leave_the_folder_is_refused(self, project, name):
        with pytest.raises(PenstockError, match="cannot be a model's name"):
            ModelRegistry(project).add_entry(name, "run-1")


class TestResolve:
    def test_an_unknown_model_is_refused_with_the_nearest_name(self, project):
        add_version(project, "run-1")
        with pytest.raises(NotFoundError, match="did you mean 'spills'"):
            resolve(project, "spils")

    def test_a_model_without_a_champion_says_how_to_get_one(self, project):
        add_version(project, "run-1")
        with pytest.raises(NotFoundError, match="penstock models promote spills"):
            resolve(project, "spills")

    def test_a_number_and_an_alias_name_the_same_version(self, project):
        add_version(project, "run-1")
        assert resolve(project, "spills", 1) == resolve(project, "spills", "challenger")

    def test_a_project_without_models_lists_none(self, project: Settings):
        assert list_versions(project) == []


def test_a_failure_of_mlflow_shows_no_password(project):
    broken = project.model_copy(
        update={
            "tracking": project.tracking.model_copy(
                update={"uri": type(project.tracking.uri)("nosuchdb://me:hunter2@host/db")}
            )
        }
    )
    with pytest.raises(PenstockError, match="MLflow's model registry failed") as caught:
        ModelRegistry(broken).names()
    assert "hunter2" not in str(caught.value)
