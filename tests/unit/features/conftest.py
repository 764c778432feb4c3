"""A store with features built, applied and materialized once, for tests that only read it."""

import shutil

import pytest

from payments import USE_CASE, commit_payments, make_payments, settings_in


@pytest.fixture(scope="session")
def prepared_storage(tmp_path_factory):
    from penstock.features.build import build
    from penstock.features.store import apply

    storage = tmp_path_factory.mktemp("prepared")
    settings = settings_in(storage)
    commit_payments(settings, make_payments(600))
    build(settings, USE_CASE)
    apply(settings)
    return storage


@pytest.fixture
def prepared(prepared_storage, tmp_path):
    """A storage of the test's own with 600 payments, their features built and applied."""
    shutil.copytree(prepared_storage, tmp_path, dirs_exist_ok=True)
    return settings_in(tmp_path)


@pytest.fixture(scope="session")
def online_settings(tmp_path_factory):
    from penstock.features.build import build
    from penstock.features.materialize import materialize
    from penstock.features.store import apply

    settings = settings_in(tmp_path_factory.mktemp("online"))
    commit_payments(settings, make_payments())
    build(settings, USE_CASE)
    apply(settings)
    materialize(settings, USE_CASE)
    return settings
