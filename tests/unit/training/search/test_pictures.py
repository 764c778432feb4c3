"""The pictures of a search."""

from xml.etree import ElementTree

import pytest

from penstock.training.declarations import Choice, Floats, Ints, Search
from penstock.training.search.pictures import best_so_far, draw, page
from penstock.training.search.summary import Axis, TrialSummary, Tuning, axes, place_on

SPACE = {
    "boosted": Search(
        max_depth=Ints(2, 10),
        learning_rate=Floats(0.01, 0.5, log=True),
        subsample=Floats(0.5, 1.0),
    ),
    "net": Search(hidden_sizes=Choice([(8,), (16, 16)])),
}


def summary(number, value, *, state="complete", **params):
    return TrialSummary(
        number=number,
        estimator="net" if "hidden_sizes" in params else "boosted",
        params=params,
        state=state,
        num_folds=4 if state == "complete" else 1,
        value=value,
        deviation=None,
        fit_s=1.0,
        reason=None if state == "complete" else "not among the best 2 after 1 of 4 folds",
    )


@pytest.fixture
def tuning():
    trials = [
        summary(0, 0.60, max_depth=6, learning_rate=0.3, subsample=1.0),
        summary(1, 0.52, state="stopped", max_depth=2, learning_rate=0.01, subsample=0.5),
        summary(2, 0.66, max_depth=4, learning_rate=0.08, subsample=0.8),
        summary(3, 0.63, hidden_sizes=[16, 16]),
        summary(4, None, state="failed", hidden_sizes=[8]),
    ]
    return Tuning(
        run_id="r",
        request_id="q",
        model="card <fraud>",
        use_case="card_fraud",
        metric="average_precision",
        higher_is_better=True,
        training_set_id="t",
        table_versions={},
        kind_of_folds="rolling",
        folds=({},) * 4,
        seed=0,
        stopping="asha",
        trials=tuple(trials),
        best=2,
        reason="all 5 trials are done",
        elapsed_s=10.0,
        cpu_s=20.0,
        money=0.1,
        currency="USD",
        pictures=(),
    )


class TestAxes:
    def test_each_field_has_one_with_its_estimators_name_where_there_are_several(self):
        names = [axis.name for axis in axes(SPACE)]
        assert names[0] == "boosted.max_depth"
        assert names[-1] == "net.hidden_sizes"
        assert axes({"boosted": SPACE["boosted"]})[0].name == "max_depth"

    def test_a_trial_crosses_it_where_its_value_lies(self):
        trial = summary(0, 0.5, max_depth=6, learning_rate=0.1)
        assert place_on(Axis(name="max_depth", low=2, high=10), trial) == 0.5
        decades = Axis(name="learning_rate", low=0.01, high=1.0, log=True)
        assert place_on(decades, trial) == pytest.approx(0.5)
        assert place_on(Axis(name="net.hidden_sizes", options=("8", "16-16")), trial) is None

    def test_options_read_back_as_lists_are_found(self):
        axis = Axis(name="hidden_sizes", options=("8", "16-16"))
        assert place_on(axis, summary(0, 0.5, hidden_sizes=[16, 16])) == 1.0


class TestDraw:
    def test_it_leaves_two_pictures_and_a_page(self, tuning, tmp_path):
        files = draw(tuning, axes(SPACE), tmp_path)
        assert [file.name for file in files] == [
            "history.png",
            "parallel_coordinates.png",
            "tuning.html",
        ]
        assert all(file.stat().st_size > 1_000 for file in files)

    def test_only_trials_measured_on_every_fold_make_the_best_so_far(self, tuning):
        assert best_so_far(tuning) == [(0, 0.60), (2, 0.66), (3, 0.66)]


class TestPage:
    def test_it_names_what_it_shows_and_escapes_it(self, tuning):
        text = page(tuning, axes(SPACE))
        assert "card &lt;fraud&gt;" in text
        assert "trial 2: boosted, 4 folds, 0.6600: max_depth 4" in text
        assert "<script" not in text

    def test_its_pictures_are_whole(self, tuning):
        text = page(tuning, axes(SPACE))
        start = 0
        assert text.index("<h3>boosted</h3>") < text.index("<h3>net</h3>")
        # A picture for each estimator and one for the history.
        for _ in range(3):
            start = text.index("<svg", start)
            end = text.index("</svg>", start) + len("</svg>")
            ElementTree.fromstring(text[start:end])  # noqa: S314  # written two lines above
            start = end

    def test_one_trial_alone_can_be_shown(self, tuning):
        alone = tuning.model_copy(update={"trials": tuning.trials[:1], "best": 0})
        assert "trial 0: boosted" in page(alone, axes(SPACE))
