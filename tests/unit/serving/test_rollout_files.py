from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from deployed import deployment, version
from penstock.serving import rollout_files
from penstock.serving.arm_counts import ArmCounts
from penstock.serving.rollout import RolloutPlan
from penstock.serving.rollout_files import LEASE_S, Report, Rollout, now
from penstock.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Of a project whose rollouts `r1` and `r2` have begun."""
    made = Settings(project_root=tmp_path)
    for rollout_id in ("r1", "r2"):
        rollout_files.begin(made, rollout_of(id=rollout_id))
    return made


def rollout_of(**changes: Any) -> Rollout:
    plan = RolloutPlan(
        model="spills",
        from_version=1,
        to_version=2,
        shares_percent=(5, 100),
        hold_s=60,
        split_by="STATION",
    )
    made = Rollout(
        id="r1",
        plan=plan,
        old=deployment(version(Path("v1"), 1)),
        new=deployment(version(Path("v2"), 2)),
        phase="shifting",
        share_percent=5,
        stage_started_at=now(),
        watched_at=now(),
    )
    return made.model_copy(update=changes)


def told(replica: str, num_answers: int = 1) -> Report:
    return Report(replica=replica, new=ArmCounts(num_answers=num_answers), old=ArmCounts())


class TestRollout:
    def test_what_was_written_is_found(self, settings: Settings):
        assert rollout_files.find(settings, "spills") is None
        rollout_files.write(settings, rollout_of())
        found = rollout_files.find(settings, "spills")
        assert (found.id, found.plan, found.share_percent) == ("r1", rollout_of().plan, 5)
        assert rollout_files.find(settings, "floods") is None

    def test_a_file_that_is_none_of_ours_is_none(self, settings: Settings):
        rollout_files.write(settings, rollout_of())
        (rollout_files.folder(settings) / "spills.json").write_text("{}")
        assert rollout_files.find(settings, "spills") is None

    @pytest.mark.parametrize(
        ("phase", "percent"), [("starting", 0), ("shifting", 5), ("finishing", 5), ("over", 0)]
    )
    def test_a_share_is_given_only_while_traffic_shifts(self, phase: str, percent: float):
        rollout = rollout_of(phase=phase)
        assert rollout.share_at(rollout.watched_at) == percent

    def test_where_nobody_watches_the_new_version_gets_nothing(self):
        rollout = rollout_of()
        assert rollout.share_at(rollout.watched_at + timedelta(seconds=LEASE_S - 0.1)) == 5
        assert rollout.share_at(rollout.watched_at + timedelta(seconds=LEASE_S)) == 0


class TestWayBack:
    def test_the_reason_is_read_where_somebody_asks(self, settings: Settings):
        assert rollout_files.asked_back(settings, "spills") is None
        rollout_files.ask_back(settings, "spills", "Überlauf")
        assert rollout_files.asked_back(settings, "spills") == "Überlauf"
        assert rollout_files.asked_back(settings, "floods") is None


class TestReports:
    def test_the_last_word_of_each_replica_counts(self, settings: Settings):
        assert rollout_files.reports(settings, rollout_of()) == []
        for report in (told("a"), told("b"), told("a", 7)):
            rollout_files.report(settings, "spills", "r1", report)
        assert rollout_files.reports(settings, rollout_of()) == [told("a", 7), told("b")]

    def test_those_of_another_rollout_do_not_count(self, settings: Settings):
        rollout_files.report(settings, "spills", "r0", told("a"))
        assert rollout_files.reports(settings, rollout_of()) == []

    def test_one_that_cannot_be_read_does_not_hide_the_others(self, settings: Settings):
        for replica in ("a", "b"):
            rollout_files.report(settings, "spills", "r1", told(replica))
        (rollout_files.reports_folder(settings, "spills", "r1") / "a.json").write_text("{")
        assert rollout_files.reports(settings, rollout_of()) == [told("b")]

    def test_one_that_is_being_written_is_not_read(self, settings: Settings):
        rollout_files.report(settings, "spills", "r1", told("a"))
        folder = rollout_files.reports_folder(settings, "spills", "r1")
        (folder / "b.new").write_text(told("b").model_dump_json())
        assert rollout_files.reports(settings, rollout_of()) == [told("a")]


class TestClear:
    def test_the_rollout_stays_and_what_only_it_needed_goes(self, settings: Settings):
        rollout_files.write(settings, rollout_of())
        rollout_files.ask_back(settings, "spills", "alerts")
        for rollout_id in ("r1", "r2"):
            rollout_files.report(settings, "spills", rollout_id, told("a"))
        rollout_files.clear(settings, rollout_of())
        assert rollout_files.find(settings, "spills") is not None
        assert rollout_files.asked_back(settings, "spills") is None
        assert rollout_files.reports(settings, rollout_of()) == []
        assert rollout_files.reports(settings, rollout_of(id="r2")) == [told("a")]
        # A replica that had not heard yet that it is over.
        rollout_files.report(settings, "spills", "r1", told("a"))
        assert not rollout_files.reports_folder(settings, "spills", "r1").exists()

    def test_where_nothing_is_left_nothing_is_to_do(self, settings: Settings):
        rollout_files.clear(settings, rollout_of())
