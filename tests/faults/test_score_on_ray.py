"""A worker that dies in the middle of a scoring costs its own slice, not the scoring."""

import os
import signal
import sys
from pathlib import Path

import pytest
import ray

from payments import TRANSACTIONS
from penstock.data import tables
from penstock.registry.registration import register
from penstock.serving import batch
from penstock.serving.batch import score_table
from penstock.serving.score_parts import ScoreParts
from penstock.serving.slice_scorer import ScoringWork, SliceScorer
from small_model import prepare, train_small

pytestmark = pytest.mark.ray

NUM_PAYMENTS = 1_000


class MortalScorer(SliceScorer):
    """Writes down what it scores, and kills its worker the first time that the third slice comes."""

    def __init__(self, work: ScoringWork, parts: ScoreParts) -> None:
        super().__init__(work, parts)
        self._folder = Path(work.settings.storage_path)

    def score(self, number: int) -> None:
        with (self._folder / "diary").open("a") as diary:
            diary.write(f"{number} {os.getpid()}\n")
        mark = self._folder / "died"
        if number == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().score(number)


@pytest.mark.usefixtures("connected")
def test_the_slice_of_a_dead_worker_is_scored_by_another_one(tmp_path, monkeypatch):
    # A worker can't import a test.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(batch, "SliceScorer", MortalScorer)
    # On one machine threads of the driver would do it.
    monkeypatch.setattr(batch, "_is_one_machine", lambda: False)
    settings = prepare(tmp_path, num_payments=NUM_PAYMENTS)
    model = register(settings, train_small(settings, "run-1"))
    told = []
    report = score_table(
        settings,
        model=model,
        source=TRANSACTIONS,
        out="card_fraud.scores",
        rows_per_slice=200,
        progress=lambda step, done, *_, **__: told.append((step, done)),
    )
    assert (tmp_path / "died").exists()
    diary = [line.split() for line in (tmp_path / "diary").read_text().splitlines()]
    assert str(os.getpid()) not in {pid for _, pid in diary}
    assert [number for number, _ in diary].count("2") == 2
    ids = tables.scan(settings, "card_fraud.scores").collect()["TRANSACTION_ID"]
    assert sorted(ids) == list(range(NUM_PAYMENTS))
    assert report.num_slices == len({number for number, _ in diary}) > 4
    assert told[0] == ("score", 0)
    assert ("score", NUM_PAYMENTS) in told
