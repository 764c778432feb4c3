"""A checkpoint's way to its storage is tried again."""

import pytest

from penstock.training.estimators.ray_journal import retried


class Storage:
    def __init__(self, num_failures):
        self.num_calls = 0
        self.num_failures = num_failures

    def __call__(self):
        self.num_calls += 1
        if self.num_calls <= self.num_failures:
            raise OSError("the storage is away")
        return "stored"


def test_a_storage_that_comes_back_takes_it():
    storage = Storage(num_failures=2)
    assert retried(storage, (0.0, 0.0)) == "stored"
    assert storage.num_calls == 3


def test_one_that_stays_away_fails_with_its_own_error():
    with pytest.raises(OSError, match="the storage is away"):
        retried(Storage(num_failures=3), (0.0, 0.0))


def test_any_other_error_is_not_tried_again():
    calls = []

    def broken():
        calls.append(1)
        raise ValueError("no storage")

    with pytest.raises(ValueError, match="no storage"):
        retried(broken, (0.0, 0.0))
    assert len(calls) == 1
