import contextlib
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.cli import main as cli
from projects import REPO_ROOT

# What answers without a Ray: it only reads, or refuses a wrong name before a job starts.
COMMANDS = st.sampled_from(
    [
        ("data", "show"),
        ("data", "history"),
        ("data", "quarantine"),
        ("features", "show"),
        ("models", "show"),
        ("models", "compare"),
        ("models", "verify"),
        ("results",),
        ("predict",),
        ("score",),
        ("train",),
        ("init",),
        ("nonsense",),
    ]
)
WORDS = st.text(min_size=1, max_size=20).filter(lambda word: "\0" not in word)


def run(*arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process; gives exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["penstock", *arguments])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
                code = 0
            except SystemExit as exit_:
                code = int(exit_.code or 0)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "pyproject.toml").write_text("[tool.penstock]\n")
    (folder / "feature_repo").symlink_to(REPO_ROOT / "feature_repo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_PROJECT_ROOT", str(folder))
        yield folder


class TestMain:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(command=COMMANDS, words=st.lists(WORDS, max_size=3))
    def test_whatever_is_typed_the_user_is_told_and_nothing_breaks(
        self, project: Path, command: tuple[str, ...], words: list[str]
    ):
        # No name of a use case ends so: nothing must be written into the feature repo.
        if command == ("init",):
            words = [f"{word}!" for word in words]
        code, out, err = run(*command, *words)
        assert code in (0, 2), (code, out, err)
        assert out + err
        assert "Traceback" not in err

    def test_a_wrong_name_is_answered_with_the_nearest_as_json(self, project: Path):
        code, out, err = run("data", "show", "card_fraud.transaction", "--json")
        assert (code, out) == (2, "")
        told = json.loads(err)
        assert told["exit_code"] == 2
        assert told["next_step"]

    def test_the_help_names_the_exit_codes(self):
        code, out, _ = run("--help")
        assert code == 0
        assert "75" in out
