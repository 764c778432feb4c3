"""A store with features built, applied and materialized once, for tests that only read it."""

import pytest

from payments import USE_CASE, commit_payments, make_payments, settings_in


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
