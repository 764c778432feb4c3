import pytest

from payments import TRANSACTIONS, USE_CASE, commit_payments, make_payments, settings_in
from penstock.data import tables
from penstock.errors import BusyError, NotFoundError
from penstock.features import build as build_module
from penstock.features.build import build
from penstock.features.declarations import load_feature_tables
from penstock.locks import exclusive

CUSTOMERS = "card_fraud.customer_windows"


class TestBuild:
    def test_each_table_names_the_source_version_that_it_was_made_from(self, tmp_path):
        settings = settings_in(tmp_path)
        commit_payments(settings, make_payments(300))
        built = build(settings, USE_CASE)
        assert [(b.table.table, b.source, b.source_version, b.is_new) for b in built] == [
            (CUSTOMERS, TRANSACTIONS, 0, True),
            ("card_fraud.terminal_windows", TRANSACTIONS, 0, True),
        ]
        assert tables.scan(settings, CUSTOMERS).collect().height == 300

    def test_a_second_run_finds_nothing_to_do(self, tmp_path):
        settings = settings_in(tmp_path)
        commit_payments(settings, make_payments(300))
        first = build(settings, USE_CASE)
        second = build(settings, USE_CASE)
        assert [b.is_new for b in second] == [False, False]
        assert [b.table for b in second] == [b.table for b in first]

    def test_new_rows_in_the_source_make_a_new_version(self, tmp_path):
        settings = settings_in(tmp_path)
        payments = make_payments(300)
        commit_payments(settings, payments[:200])
        build(settings, USE_CASE)
        commit_payments(settings, payments[200:])
        assert [(b.is_new, b.table.num_rows) for b in build(settings, USE_CASE)] == [
            (True, 300),
            (True, 300),
        ]

    def test_a_changed_declaration_makes_a_new_version(self, tmp_path, monkeypatch):
        settings = settings_in(tmp_path)
        commit_payments(settings, make_payments(300))
        build(settings, USE_CASE)
        declared = load_feature_tables(settings, USE_CASE)
        monkeypatch.setattr(type(declared[CUSTOMERS]), "digest", "another declaration")
        assert [b.is_new for b in build(settings, USE_CASE)] == [True, True]

    def test_a_run_that_dies_before_its_commit_leaves_the_table_as_it_was(
        self, tmp_path, monkeypatch
    ):
        settings = settings_in(tmp_path)
        payments = make_payments(300)
        commit_payments(settings, payments[:200])
        before = build(settings, USE_CASE)[0].table
        commit_payments(settings, payments[200:])

        def die(*_args: object, **_kwargs: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(build_module.windows, "compute", die)
            with pytest.raises(KeyboardInterrupt):
                build(settings, USE_CASE)
        assert tables.latest(settings, CUSTOMERS) == before
        assert build(settings, USE_CASE)[0].table.num_rows == 300

    def test_a_build_beside_another_is_told_to_come_back(self, tmp_path):
        settings = settings_in(tmp_path)
        commit_payments(settings, make_payments(50))
        with (
            exclusive(tmp_path / "locks" / f"build-{CUSTOMERS}", what="x"),
            pytest.raises(BusyError, match=CUSTOMERS),
        ):
            build(settings, USE_CASE)

    def test_a_source_that_was_never_written_is_named(self, tmp_path):
        with pytest.raises(NotFoundError, match=TRANSACTIONS):
            build(settings_in(tmp_path), USE_CASE)
