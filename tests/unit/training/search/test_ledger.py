"""A search's record, and what is left of it after a kill."""

import pytest

from penstock.errors import IntegrityError, UserError
from penstock.training.search.ledger import Begun, Closed, Ended, Ledger, Measured

PLAN = {"seed": 0, "space": {"max_depth": [2, 10]}}


def filled(file):
    ledger = Ledger(file, PLAN)
    ledger.append(Begun(trial=0, estimator="boosted", params={"max_depth": 3}, at_s=0.5))
    ledger.append(measured(fold=1, value=0.5, at_s=2.0))
    ledger.append(measured(fold=0, value=0.7, at_s=3.0))
    ledger.append(Ended(trial=0, state="complete"))
    return ledger


def measured(*, trial=0, fold, value, at_s):
    return Measured(trial=trial, fold=fold, metrics={"ap": value}, fit_s=1.0, cpu_s=2.0, at_s=at_s)


class TestLedger:
    def test_what_was_written_is_read_back(self, tmp_path):
        written = filled(tmp_path / "search.jsonl")
        read = Ledger(tmp_path / "search.jsonl", PLAN)
        assert read.trials == written.trials
        assert read.trials[0].value("ap") == pytest.approx(0.6)
        assert (read.elapsed_s, read.cpu_s, read.closed) == (3.0, 4.0, None)

    def test_a_kill_at_any_byte_loses_at_most_the_last_event(self, tmp_path):
        file = tmp_path / "search.jsonl"
        filled(file)
        whole = file.read_bytes()
        num_events = whole.count(b"\n")
        for length in range(0, len(whole), 7):
            file.write_bytes(whole[:length])
            kept = whole[:length].count(b"\n")
            ledger = Ledger(file, PLAN)
            assert len(ledger.trials) == (kept >= 2)
            assert sum(len(trial.folds) for trial in ledger.trials) == max(min(kept, 4) - 2, 0)
            # What comes after goes on a line of its own.
            ledger.append(Closed(reason="enough", at_s=9.0))
            assert Ledger(file, PLAN).closed == "enough"
        assert num_events == 5

    def test_another_search_under_the_same_name_is_refused(self, tmp_path):
        filled(tmp_path / "search.jsonl")
        with pytest.raises(UserError, match="another seed"):
            Ledger(tmp_path / "search.jsonl", {**PLAN, "seed": 1})

    def test_a_broken_line_within_is_told_by_its_number(self, tmp_path):
        file = tmp_path / "search.jsonl"
        filled(file)
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join([*lines[:2], b"{}\n", *lines[2:]]))
        with pytest.raises(IntegrityError, match="line 3"):
            Ledger(file, PLAN)
