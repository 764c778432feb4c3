import pytest

from bundles import add_version
from penstock import audit
from penstock.errors import (
    BusyError,
    GateRefusedError,
    IntegrityError,
    NotFoundError,
    UserError,
)
from penstock.registry import promotion
from penstock.registry.lock import model_lock
from penstock.registry.promotion import champions, compare, promote, rollback
from penstock.registry.versions import ModelRegistry
from penstock.training.declarations import GatePolicy


def aliases(settings):
    return ModelRegistry(settings).aliases("spills")


class TestPromote:
    def test_the_first_version_becomes_champion_and_is_no_challenger_any_more(self, project):
        add_version(project, "run-1")
        move = promote(project, "spills", 1, expected=None)
        assert aliases(project) == {"champion": 1}
        assert (move.number, move.from_version, move.to_version) == (1, None, 1)

    def test_a_better_version_takes_over_and_the_old_one_stays_at_hand(self, project):
        add_version(project, "run-1", average_precision=0.61)
        add_version(project, "run-2", average_precision=0.63)
        promote(project, "spills", 1, expected=None)
        promote(project, "spills", 2, expected=1)
        assert aliases(project) == {"champion": 2, "previous_champion": 1}

    def test_the_gate_keeps_a_version_out_that_gains_too_little(self, project):
        add_version(project, "run-1", average_precision=0.61)
        add_version(project, "run-2", average_precision=0.615)
        promote(project, "spills", 1, expected=None)
        with pytest.raises(GateRefusedError, match=r"a gain of \+0\.005 where \+0\.01"):
            promote(project, "spills", 2, expected=1)
        assert aliases(project)["champion"] == 1

    def test_where_lower_is_better_the_declared_metric_says_so(self, project, monkeypatch):
        add_version(project, "run-1", log_loss=0.05)
        add_version(project, "run-2", log_loss=0.06)
        promote(project, "spills", 1, expected=None)
        declared = promotion.load_model(project, "dam").model_copy(
            update={"gate": GatePolicy(metric="log_loss")}
        )
        monkeypatch.setattr(promotion, "load_model", lambda *_: declared)
        with pytest.raises(GateRefusedError, match=r"a gain of -0\.01"):
            promote(project, "spills", 2, expected=1)

    def test_the_gate_keeps_a_leak_out(self, project):
        add_version(project, "run-1", average_precision=0.993)
        with pytest.raises(GateRefusedError, match="not plausible"):
            promote(project, "spills", 1, expected=None)

    def test_force_needs_a_reason_and_the_journal_keeps_it(self, project):
        add_version(project, "run-1", average_precision=0.61)
        add_version(project, "run-2", average_precision=0.5)
        promote(project, "spills", 1, expected=None)
        promote(project, "spills", 2, expected=1, force_reason="the first one leaks names")
        last = ModelRegistry(project).moves("spills")[-1]
        assert (last.forced, last.reason) == (True, "the first one leaks names")

    def test_a_champion_other_than_expected_stops_the_move(self, project):
        add_version(project, "run-1", average_precision=0.61)
        add_version(project, "run-2", average_precision=0.63)
        promote(project, "spills", 1, expected=None)
        with pytest.raises(BusyError, match="is version 1, no longer none"):
            promote(project, "spills", 2, expected=None)

    def test_while_another_move_holds_the_lock_one_is_told_so(self, project):
        add_version(project, "run-1")
        with model_lock(project, "spills"), pytest.raises(BusyError, match="held by process"):
            promote(project, "spills", 1, expected=None)

    def test_a_spoiled_package_is_never_promoted(self, project):
        add_version(project, "run-1")
        (project.models_path / "spills/1/model.onnx").write_bytes(b"evil")
        with pytest.raises(IntegrityError, match=r"model\.onnx"):
            promote(project, "spills", 1, expected=None)

    def test_a_damaged_champion_is_left_by_force_only_and_for_a_whole_version(self, project):
        for number, score in enumerate((0.5, 0.55, 0.6), start=1):
            add_version(project, f"run-{number}", average_precision=score)
        promote(project, "spills", 1, expected=None)
        for number in (1, 2):
            (project.models_path / f"spills/{number}/model.onnx").write_bytes(b"evil")
        with pytest.raises(IntegrityError, match="spills/1/model"):
            promote(project, "spills", 3, expected=1)
        with pytest.raises(IntegrityError, match="spills/2/model"):
            promote(project, "spills", 2, expected=1, force_reason="1 is damaged")
        move = promote(project, "spills", 3, expected=1, force_reason="1 is damaged")
        assert (move.forced, aliases(project)["champion"]) == (True, 3)

    def test_the_gate_reads_the_signed_metrics_and_not_mlflows(self, project):
        add_version(project, "run-1", average_precision=0.993)
        registry = ModelRegistry(project)
        facts = registry.resolve("spills", 1).facts.model_copy(
            update={"metrics": {"average_precision": 0.6, "roc_auc": 0.9}}
        )
        registry._client.set_model_version_tag(
            "spills", "1", "penstock.facts", facts.model_dump_json()
        )
        with pytest.raises(GateRefusedError, match="not plausible"):
            promote(project, "spills", 1, expected=None)

    def test_an_older_version_than_the_champion_is_asked_for_by_name(self, project):
        for number, score in enumerate((0.6, 0.5), start=1):
            add_version(project, f"run-{number}", average_precision=score)
        promote(project, "spills", 2, expected=None)
        with pytest.raises(UserError, match="is older than the champion, version 2"):
            promote(project, "spills", 1, expected=2)
        promote(project, "spills", 1, expected=2, downgrade=True)
        assert aliases(project)["champion"] == 1

    def test_every_move_is_in_the_audit_log(self, project):
        add_version(project, "run-1", average_precision=0.5)
        add_version(project, "run-2", average_precision=0.6)
        promote(project, "spills", 1, expected=None)
        promote(project, "spills", 2, expected=1)
        rollback(project, "spills", expected=2, reason="alerts")
        audit.verify(project)
        told = [(r.action, r.subject, r.facts["from_version"]) for r in audit.records(project)]
        assert told == [
            ("model.promote", "spills 1", None),
            ("model.promote", "spills 2", 1),
            ("model.rollback", "spills 1", 2),
        ]

    def test_an_unknown_version_is_refused(self, project):
        add_version(project, "run-1")
        with pytest.raises(NotFoundError, match="no version 7"):
            promote(project, "spills", 7, expected=None)


class TestRollback:
    def test_it_walks_back_champion_by_champion(self, project):
        for number, score in enumerate((0.5, 0.55, 0.6), start=1):
            add_version(project, f"run-{number}", average_precision=score)
            promote(project, "spills", number, expected=number - 1 or None)
        rollback(project, "spills", expected=3, reason="alerts")
        assert aliases(project) == {"champion": 2, "previous_champion": 1}
        rollback(project, "spills", expected=2, reason="more alerts")
        assert aliases(project) == {"champion": 1}
        with pytest.raises(NotFoundError, match="no champion before version 1"):
            rollback(project, "spills", expected=1, reason="still")

    def test_a_damaged_champion_does_not_keep_it(self, project):
        for number, score in enumerate((0.5, 0.55), start=1):
            add_version(project, f"run-{number}", average_precision=score)
            promote(project, "spills", number, expected=number - 1 or None)
        (project.models_path / "spills/2/model.onnx").write_bytes(b"evil")
        rollback(project, "spills", expected=2, reason="damaged")
        assert aliases(project) == {"champion": 1}

    def test_every_move_stands_in_the_journal(self, project):
        for number, score in enumerate((0.5, 0.55), start=1):
            add_version(project, f"run-{number}", average_precision=score)
            promote(project, "spills", number, expected=number - 1 or None)
        rollback(project, "spills", expected=2, reason="alerts")
        moves = ModelRegistry(project).moves("spills")
        assert [(m.number, m.kind, m.from_version, m.to_version) for m in moves] == [
            (1, "promote", None, 1),
            (2, "promote", 1, 2),
            (3, "rollback", 2, 1),
        ]
        assert moves[-1].reason == "alerts"

    def test_of_two_callers_who_saw_the_same_champion_one_goes_back(self, project):
        for number, score in enumerate((0.5, 0.55, 0.6), start=1):
            add_version(project, f"run-{number}", average_precision=score)
            promote(project, "spills", number, expected=number - 1 or None)
        rollback(project, "spills", expected=3, reason="alerts")
        with pytest.raises(BusyError, match="no longer version 3"):
            rollback(project, "spills", expected=3, reason="alerts")
        assert aliases(project)["champion"] == 2

    def test_a_champion_set_in_mlflow_itself_can_be_rolled_back(self, project):
        for number in (1, 2):
            add_version(project, f"run-{number}")
        promote(project, "spills", 1, expected=None)
        ModelRegistry(project).set_aliases("spills", {"champion": 2})
        rollback(project, "spills", expected=2, reason="not ours")
        assert aliases(project)["champion"] == 1

    def test_it_never_goes_back_to_a_spoiled_package(self, project):
        for number, score in enumerate((0.5, 0.55), start=1):
            add_version(project, f"run-{number}", average_precision=score)
            promote(project, "spills", number, expected=number - 1 or None)
        (project.models_path / "spills/1/model.onnx").write_bytes(b"evil")
        with pytest.raises(IntegrityError):
            rollback(project, "spills", expected=2, reason="alerts")
        assert aliases(project)["champion"] == 2


class TestCompare:
    def test_it_shows_what_the_gate_would_say_and_changes_nothing(self, project):
        add_version(project, "run-1", average_precision=0.61)
        promote(project, "spills", 1, expected=None)
        add_version(project, "run-2", average_precision=0.7)
        comparison = compare(project, "spills")
        assert comparison.decision.passed
        assert comparison.same_training_set
        assert (comparison.champion.version, comparison.challenger.version) == (1, 2)
        assert aliases(project)["champion"] == 1


def test_the_line_of_champions_is_read_from_the_moves(project):
    assert champions([], None) == []
    assert champions([], 3) == [3]


def test_without_the_check_of_the_expected_champion_both_of_two_callers_would_win(
    project, monkeypatch
):
    monkeypatch.setattr(promotion, "_check_expected", lambda *_: None)
    add_version(project, "run-1", average_precision=0.5)
    add_version(project, "run-2", average_precision=0.6)
    promote(project, "spills", 1, expected=None)
    promote(project, "spills", 2, expected=None)
