import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from payments import (
    SERVICE,
    USE_CASE,
    commit_payments,
    end_of_day,
    make_payments,
    settings_in,
)
from penstock.errors import BusyError, PenstockError, SettingsError, UserError
from penstock.features import store as store_module
from penstock.features.build import build
from penstock.features.declarations import load_feature_objects
from penstock.features.materialize import materialize
from penstock.features.online import OnlineReader
from penstock.features.store import apply, open_store, registered_view, repo_config
from penstock.locks import exclusive
from penstock.use_cases import list_use_cases
from real_data import REPO_ROOT


class TestRepoConfig:
    def test_the_settings_stand_over_the_file(self, tmp_path):
        config = repo_config(
            settings_in(
                tmp_path,
                registry_url="postgresql://u:p@db/feast",
                online_store="redis",
                redis="cache:6379",
            )
        )
        assert config.project == "penstock"
        assert config.registry.path == "postgresql+psycopg://u:p@db/feast"
        assert config.registry.cache_ttl_seconds == 0
        assert config.online_store.connection_string == "cache:6379"
        assert config.entity_key_serialization_version == 3

    def test_every_path_is_absolute_so_that_any_folder_will_do(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        config = repo_config(settings_in(tmp_path / "storage"))
        assert Path(config.online_store.path).is_absolute()
        assert config.registry.path.startswith("sqlite:////")

    def test_a_file_that_is_no_mapping_is_refused(self, tmp_path):
        (tmp_path / "feature_repo").mkdir()
        (tmp_path / "feature_repo" / "feature_store.yaml").write_text("- 1\n")
        settings = settings_in(tmp_path).model_copy(update={"project_root": tmp_path})
        with pytest.raises(SettingsError, match="no Feast project"):
            repo_config(settings)

    def test_an_absent_file_is_named(self, tmp_path):
        settings = settings_in(tmp_path).model_copy(update={"project_root": tmp_path})
        with pytest.raises(SettingsError, match=r"feature_store\.yaml"):
            repo_config(settings)


class TestOpenStore:
    def test_a_registry_out_of_reach_is_told_without_its_password(self, tmp_path):
        settings = settings_in(
            tmp_path, registry_url="postgresql://u:hush-hush@127.0.0.1:1/feast?connect_timeout=2"
        )
        with pytest.raises(PenstockError, match="cannot be opened") as caught:
            open_store(settings)
        assert "hush-hush" not in str(caught.value)


class TestApply:
    def test_the_first_time_adds_all_and_the_second_changes_nothing(self, tmp_path):
        settings = settings_in(tmp_path)
        added = {(c.kind, c.name) for c in apply(settings) if c.change == "added"}
        assert added >= {
            ("entities", "customer"),
            ("views", "card_fraud_customer"),
            ("on_demand_views", "card_fraud_payment_features"),
            ("services", "card_fraud_v1"),
        }
        assert apply(settings) == []

    def test_a_changed_view_is_updated_and_nothing_else(self, tmp_path, monkeypatch):
        settings = settings_in(tmp_path)
        apply(settings)
        view = load_feature_objects(settings, USE_CASE).views["card_fraud_customer"]
        monkeypatch.setattr(view, "description", "changed")
        assert [(c.name, c.change) for c in apply(settings)] == [("card_fraud_customer", "updated")]

    def test_what_no_use_case_declares_any_more_is_removed(self, tmp_path, monkeypatch):
        settings = settings_in(tmp_path)
        apply(settings, [USE_CASE])
        objects = load_feature_objects(settings, USE_CASE)
        objects.services.clear()
        monkeypatch.setattr(store_module, "list_use_cases", lambda _settings: [USE_CASE])
        monkeypatch.setattr(store_module, "load_feature_objects", lambda *_: objects)
        assert [(c.name, c.change) for c in apply(settings)] == [("card_fraud_v1", "removed")]
        assert open_store(settings).list_feature_services() == []

    def test_applying_one_use_case_removes_nothing(self, tmp_path, monkeypatch):
        settings = settings_in(tmp_path)
        apply(settings)
        objects = load_feature_objects(settings, USE_CASE)
        objects.services.clear()
        monkeypatch.setattr(store_module, "load_feature_objects", lambda *_: objects)
        assert apply(settings, [USE_CASE]) == []
        assert len(open_store(settings).list_feature_services()) >= 1

    def test_no_function_from_the_registry_is_loaded(self, tmp_path, monkeypatch):
        from feast.transformation import udf_rehydrate

        settings = settings_in(tmp_path)
        apply(settings)

        def loaded(**_given):
            raise AssertionError("a function of the registry was loaded")

        monkeypatch.setattr(udf_rehydrate, "resolve_udf", loaded)
        assert apply(settings) == []
        view = load_feature_objects(settings, USE_CASE).on_demand_views[
            "card_fraud_payment_features"
        ]
        monkeypatch.setattr(view, "description", "changed")
        assert [(c.name, c.change) for c in apply(settings)] == [(view.name, "updated")]

    def test_an_apply_beside_another_is_told_to_come_back(self, tmp_path, monkeypatch):
        monkeypatch.setattr(store_module, "_WAIT_FOR_REGISTRY_S", 0.05)
        with (
            exclusive(tmp_path / "locks" / "feature-registry", what="x"),
            pytest.raises(BusyError, match="feature registry"),
        ):
            apply(settings_in(tmp_path))


@pytest.mark.servers
class TestClusterProfile:
    def test_postgres_and_redis_take_over_from_the_embedded_files(
        self, tmp_path, postgres, redis_server
    ):
        settings = settings_in(
            tmp_path,
            registry_url=postgres.create("feast").replace("+psycopg", ""),
            online_store="redis",
            redis=redis_server.connection_string,
        )
        commit_payments(settings, make_payments(600))
        build(settings, USE_CASE)
        assert apply(settings) != []
        assert apply(settings) == []
        assert [v.num_entities for v in materialize(settings, USE_CASE)] == [40, 60]
        view = open_store(settings).get_feature_view("card_fraud_customer")
        assert view.most_recent_end_time is not None
        reader = OnlineReader.open(settings, USE_CASE, SERVICE)
        row = {"CUSTOMER_ID": 1, "TERMINAL_ID": 2, "TX_DATETIME": end_of_day(59), "TX_AMOUNT": 1.0}
        assert reader.read([row]).missing == [()]
        reader.close()
        assert not list(tmp_path.glob("*.db"))


class TestRegisteredView:
    def test_a_view_that_was_never_applied_is_named(self, tmp_path):
        settings = settings_in(tmp_path)
        view = load_feature_objects(settings, USE_CASE).views["card_fraud_customer"]
        with pytest.raises(UserError, match=r"not in the registry.*features apply"):
            registered_view(open_store(settings), view)

    def test_a_view_that_changed_since_is_named(self, tmp_path, monkeypatch):
        settings = settings_in(tmp_path)
        apply(settings)
        view = load_feature_objects(settings, USE_CASE).views["card_fraud_customer"]
        monkeypatch.setattr(view, "ttl", view.ttl * 2)
        with pytest.raises(UserError, match="changed after"):
            registered_view(open_store(settings), view)


class TestFeastByHand:
    def test_feasts_own_command_applies_the_repo(self, tmp_path):
        shutil.copytree(REPO_ROOT / "feature_repo", tmp_path / "feature_repo")
        shutil.copy(REPO_ROOT / "pyproject.toml", tmp_path)
        (tmp_path / ".penstock").mkdir()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")}
        feast = Path(sys.executable).parent / "feast"
        done = subprocess.run(
            [feast, "-c", "feature_repo", "apply"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        settings = settings_in(tmp_path / ".penstock")
        # Ours finds in the same files what Feast's command has written there.
        assert apply(settings) == []
        applied = {service.name for service in open_store(settings).list_feature_services()}
        assert applied == {f"{use_case}_v1" for use_case in list_use_cases(settings)}
