import pytest

from bundles import add_version
from penstock import audit
from penstock.errors import GateRefusedError, NotFoundError
from penstock.registry import promotion
from penstock.registry.approval import approve
from penstock.registry.promotion import promote
from penstock.registry.versions import ModelRegistry
from penstock.training.declarations import GatePolicy


@pytest.fixture
def strict(project, monkeypatch):
    """A project whose gate asks for a second pair of eyes; ada acts in it."""
    gate = GatePolicy(metric="average_precision", needs_approval=True)
    declared = promotion.load_model(project, "dam").model_copy(update={"gate": gate})
    monkeypatch.setattr(promotion, "load_model", lambda *_: declared)
    add_version(project, "run-1")
    return project.model_copy(update={"actor": "ada"})


def other(settings):
    return settings.model_copy(update={"actor": "ben"})


def test_nobody_promotes_what_nobody_has_approved(strict):
    with pytest.raises(GateRefusedError, match="nobody has yet"):
        promote(strict, "spills", 1, expected=None)
    assert ModelRegistry(strict).aliases("spills").get("champion") is None


def test_ones_own_approval_does_not_count(strict):
    approve(strict, "spills", 1, reason="looks well")
    with pytest.raises(GateRefusedError, match="only ada has, who promotes it"):
        promote(strict, "spills", 1, expected=None)


def test_somebody_elses_approval_lets_it_through_and_is_written_down(strict):
    approve(strict, "spills", 1, reason="mine")
    approve(other(strict), "spills", 1, reason="looked at the slices")
    promote(strict, "spills", 1, expected=None)
    assert ModelRegistry(strict).aliases("spills")["champion"] == 1
    told = [(record.action, record.actor) for record in audit.records(strict)]
    assert told == [("model.approve", "ada"), ("model.approve", "ben"), ("model.promote", "ada")]


def test_force_goes_against_the_gate_and_not_against_the_approval(strict):
    with pytest.raises(GateRefusedError, match="must be approved"):
        promote(strict, "spills", 1, expected=None, force_reason="now")


def test_an_approval_is_of_one_version(strict):
    add_version(strict, "run-2")
    approve(other(strict), "spills", 1, reason="looked at it")
    with pytest.raises(GateRefusedError, match="version 2 of spills must be approved"):
        promote(strict, "spills", 2, expected=None)


def test_what_there_is_not_cannot_be_approved(strict):
    with pytest.raises(NotFoundError, match="no version 7"):
        approve(strict, "spills", 7, reason="a guess")
