"""What `penstock explain` refuses before it asks anybody, and what it shows of an answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundles import write_use_case
from penstock.errors import UserError
from penstock.serving import client
from penstock.settings import Settings

Run = Callable[..., str]
ANSWER = {
    "model": "spills",
    "version": 3,
    "is_exact": True,
    "explanations": [
        {
            "score": 0.31,
            "base_score": 0.02,
            "contributions": [
                {"feature": "amount", "value": 230.5, "contribution": 0.3},
                {"feature": "risk_7d", "value": None, "contribution": -0.01},
            ],
            "missing": ["risk_7d"],
            "text": "Score 0.31, against 0.02 on average.",
        }
    ],
}


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ((), "nothing to explain"),
        (("{}", "--prediction-id", "p-0"), "both rows and --prediction-id"),
        (("--prediction-id", "p-0", "--version", "3"), "--version with --prediction-id"),
        (("{}", "--plot", "why.pdf"), "--plot is 'why.pdf'"),
    ],
)
def test_what_cannot_be_is_refused(run_in: Run, options: tuple[str, ...], found: str):
    with pytest.raises(UserError, match=found):
        run_in("explain", "dam", *options)


def test_an_answer_is_a_table_words_and_a_picture(
    run_in: Run, empty_project: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    write_use_case(empty_project.project_root)
    asked: list[Any] = []

    def ask(_url: str, model: str, text: str, **options: Any) -> dict[str, Any]:
        asked.append((model, text, options["version"]))
        return ANSWER

    # The server that answers is the journey's.
    monkeypatch.setattr(client, "explain", ask)
    picture = tmp_path / "why.png"
    told = run_in("explain", "dam", '{"amount": 230.5}', "--version", "3", "--plot", str(picture))
    assert asked == [("spills", '{"amount": 230.5}', 3)]
    amount, risk = (next(li for li in told.splitlines() if f in li) for f in ("amount", "risk_7d"))
    assert "230.5" in amount
    assert "+0.3" in amount
    assert "missing" in risk
    assert "-0.01" in risk
    assert "Score 0.31, against 0.02 on average." in told
    assert picture.read_bytes().startswith(b"\x89PNG")
