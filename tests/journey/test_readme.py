"""The README's journey, run as it stands there: in the local profile by the fixture `journey`."""

from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray]


class TestTheReadmesJourney:
    def test_every_command_ends_well(self, journey: list[Any]):
        failed = [(step.command, step.stderr[-2000:]) for step in journey if step.exit_code]
        assert failed == []

    def test_the_last_answers_are_a_prediction_and_a_table_of_scores(self, journey: list[Any]):
        by_command = {" ".join(step.command.split()[:2]): step for step in journey}
        assert "score" in by_command["penstock predict"].stdout
        assert "card_fraud.scores" in by_command["penstock score"].stdout
        assert '"predictions"' in by_command["curl -s"].stdout
