import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import errors
from penstock.cluster import markers
from penstock.errors import BusyError, GateRefusedError, PenstockError, RequestError, UserError

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class TestLines:
    @given(st.dictionaries(st.text(), ANY_JSON, max_size=4))
    def test_any_result_survives_the_log_as_one_line(self, result):
        marker = markers.ResultMarker(result=result)
        line = markers.write(marker)
        # "\n" alone ends a line of a log; JSON escapes it.
        assert "\n" not in line
        assert markers.read(line) == marker

    @given(st.text(), st.integers(0), st.none() | st.integers(0))
    def test_progress_survives_too(self, step, done, total):
        marker = markers.ProgressMarker(step=step, done=done, total=total, unit="rows")
        assert markers.read(markers.write(marker)) == marker

    @given(st.text())
    def test_nothing_that_a_job_prints_breaks_the_reader(self, text):
        assert markers.read(text) is None or text.startswith("::penstock:: ")
        markers.read("::penstock:: " + text)

    @pytest.mark.parametrize(
        "line",
        [
            "::penstock:: {",
            "::penstock:: []",
            "::penstock:: 7",
            '::penstock:: {"kind": "other"}',
            '::penstock:: {"kind": ["progress"]}',
            '::penstock:: {"kind": "progress"}',
            ' ::penstock:: {"kind": "result", "result": {}}',
        ],
    )
    def test_what_only_looks_like_a_marker_is_an_ordinary_line(self, line):
        assert markers.read(line) is None


class TestErrors:
    @pytest.mark.parametrize("kind", [PenstockError, UserError, GateRefusedError, BusyError])
    def test_an_error_comes_back_as_itself(self, kind):
        error = kind("found this", allowed="that", next_step="do so")
        back = markers.to_error(markers.from_error(error))
        assert type(back) is kind
        assert str(back) == str(error)
        assert back.exit_code == error.exit_code

    def test_one_with_more_parts_keeps_its_words_and_its_code(self):
        back = markers.to_error(markers.from_error(RequestError(422, "bad", "too many rows")))
        assert back.found == "too many rows"
        assert back.exit_code == 2

    def test_a_name_that_is_no_error_of_ours_builds_nothing_else(self):
        marker = markers.from_error(PenstockError("x")).model_copy(update={"error": "difflib"})
        assert hasattr(errors, "difflib")
        assert type(markers.to_error(marker)) is PenstockError
