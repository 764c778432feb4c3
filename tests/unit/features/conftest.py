"""A store with features built, applied and materialized once, for tests that only read it."""

import shutil

import pytest

from payments import USE_CASE, build_features, settings_in


@pytest.fixture(scope="session")
def prepared_storage(tmp_path_factory):
    storage = tmp_path_factory.mktemp("prepared")
    build_features(settings_in(storage))
    return storage


@pytest.fixture
def prepared(prepared_storage, tmp_path):
    """A storage of the test's own with 600 payments, their features built and applied."""
    shutil.copytree(prepared_storage, tmp_path, dirs_exist_ok=True)
    return settings_in(tmp_path)


@pytest.fixture(scope="session")
def online_settings(tmp_path_factory):
    from penstock.features.materialize import materialize

    settings = build_features(settings_in(tmp_path_factory.mktemp("online")), 3_000)
    materialize(settings, USE_CASE)
    return settings
