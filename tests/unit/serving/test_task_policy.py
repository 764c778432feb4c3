import pytest

from penstock.serving.task_policy import (
    MAX_ATTEMPTS,
    BeginAgain,
    Fail,
    Keep,
    Wait,
    after_fault,
    decide,
)


def decided(status: int, code: str = "c", *, is_insisted=False, num_attempts=1, **more):
    return decide(status, code, "m", is_insisted=is_insisted, num_attempts=num_attempts, **more)


def test_an_answer_is_kept():
    assert decided(200) == Keep()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (429, "too_many_requests"),
        (503, "overloaded"),
        (503, "features_absent"),
        (503, "unavailable"),
    ],
)
def test_who_is_refused_for_now_waits_as_long_as_it_is_told_and_for_ever(status, code):
    for num_attempts in (1, 100):
        outcome = decided(status, code, num_attempts=num_attempts, retry_after_s=7)
        assert outcome == Wait(7, False, f"m ({status} {code})")


def test_a_fault_is_tried_again_later_and_later_and_then_given_up():
    waits = [decided(503, "internal", num_attempts=n).wait_s for n in range(1, MAX_ATTEMPTS)]
    assert waits == sorted(waits)
    assert waits[0] < waits[-1]
    last = decided(503, "internal", num_attempts=MAX_ATTEMPTS)
    assert last == Fail("gave_up", "no answer after 5 tries: m (503 internal)")
    assert after_fault("it died", num_attempts=MAX_ATTEMPTS + 1).code == "gave_up"


def test_a_version_that_is_gone_is_waited_for_only_by_who_insists_on_it():
    assert isinstance(decided(404, "unknown_version"), BeginAgain)
    assert decided(404, "unknown_version", is_insisted=True).is_counted is False


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_what_the_rows_are_to_blame_for_fails_at_once(status):
    assert decided(status, "no_score") == Fail("no_score", "m")
