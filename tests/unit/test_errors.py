import pickle

import pytest

from penstock import errors
from penstock.errors import JobFailedError, PenstockError, RequestError, UserError, unknown_name


class TestPenstockError:
    def test_says_found_allowed_and_next_in_one_message(self):
        error = UserError("7 is no color", allowed="red, blue", next_step="pick one")
        assert str(error) == "7 is no color. Allowed: red, blue. Next: pick one."

    def test_a_question_needs_no_full_stop(self):
        assert str(UserError("x", next_step="did you mean y?")) == "x. Next: did you mean y?"

    @pytest.mark.parametrize(
        "error",
        [
            UserError("found", allowed="a", next_step="n"),
            JobFailedError("ended", exit_code=7),
            RequestError(422, "not_a_number", "is text", path="$.rows[0].amount"),
        ],
        ids=lambda e: type(e).__name__,
    )
    def test_travels_between_processes_whole(self, error: PenstockError):
        # Ray carries an error from a worker to the driver in just this way.
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
        assert type(copy) is type(error)
        assert copy.__dict__ == error.__dict__
        assert str(copy) == str(error)

    def test_every_kind_stands_in_the_drawn_tree(self):
        kinds = [
            name
            for name, value in vars(errors).items()
            if isinstance(value, type) and issubclass(value, PenstockError)
        ]
        assert [name for name in kinds if name not in (errors.__doc__ or "")] == []


class TestUnknownName:
    def test_offers_the_nearest(self):
        assert "did you mean 'champion'?" in str(unknown_name("alias", "champoin", ["champion"]))

    def test_says_so_where_there_is_none(self):
        assert "none yet" in str(unknown_name("table", "x", []))
