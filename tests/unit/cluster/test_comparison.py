import pytest

from penstock.cluster.comparison import Inspection, compare, inspect
from penstock.settings import Settings


def side(**changes: object) -> Inspection:
    facts = {
        "python": "3.11.7",
        "packages": {"ray": "2.60.0"},
        "clock_s": 100.0,
        "sees_probe": True,
    }
    return Inspection.model_validate(facts | changes)


def wrong(there: Inspection, *, here: Inspection | None = None, answered_s: float = 105.0) -> list:
    checks = compare(here or side(), there, answered_s=answered_s)
    return [check for check in checks if not check.ok]


class TestCompare:
    def test_two_equal_sides_are_well(self):
        assert wrong(side(clock_s=103.0)) == []

    def test_another_patch_of_python_is_well_and_another_minor_is_not(self):
        assert wrong(side(python="3.11.9")) == []
        (check,) = wrong(side(python="3.12.1"))
        assert check.found == "3.12.1 there, 3.11.7 here"

    def test_another_version_of_a_package_is_named(self):
        (check,) = wrong(side(packages={"ray": "2.59.0"}))
        assert check.found == "ray 2.59.0 there, 2.60.0 here"

    def test_a_storage_of_its_own_is_found(self):
        (check,) = wrong(side(sees_probe=False))
        assert check.name == "shared storage"

    @pytest.mark.parametrize(
        ("clock_s", "is_wrong"),
        [
            (100.0, False),
            (105.0, False),
            (98.5, False),
            (106.5, False),
            (97.0, True),
            (108.0, True),
        ],
    )
    def test_only_what_lies_outside_of_question_and_answer_is_skew(self, clock_s, is_wrong):
        assert bool(wrong(side(clock_s=clock_s))) is is_wrong


def test_a_side_sees_the_probe_only_with_its_words(tmp_path):
    settings = Settings(project_root=tmp_path)
    settings.storage_path.mkdir()
    assert not inspect(settings, "nonce").sees_probe
    (settings.storage_path / ".doctor-nonce").write_text("other")
    assert not inspect(settings, "nonce").sees_probe
    (settings.storage_path / ".doctor-nonce").write_text("nonce")
    assert inspect(settings, "nonce").sees_probe
