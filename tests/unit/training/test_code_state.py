"""The state of a checkout, taken from real repositories of git."""

import subprocess

import pytest

from penstock.errors import UserError
from penstock.settings import Settings
from penstock.training import code_state
from penstock.training.code_state import MAX_PATCH_BYTES, choose, hand_over, receive, take


def git(folder, *arguments):
    who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path):
    """A project with one commit: model.py and notes.txt."""
    git(tmp_path, "init")
    (tmp_path / ".gitignore").write_text(".penstock\n")
    (tmp_path / "model.py").write_text("rounds = 10\n")
    (tmp_path / "notes.txt").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return tmp_path


class TestTake:
    def test_a_clean_checkout_is_its_commit_alone(self, checkout):
        state = take(Settings(project_root=checkout))
        assert state.commit == git(checkout, "rev-parse", "HEAD").strip()
        assert (state.patch, state.patch_digest, dict(state.left_out)) == ("", None, {})

    def test_a_changed_file_makes_it_dirty_and_the_patch_brings_the_change_back(self, checkout):
        (checkout / "model.py").write_text("rounds = 20\n")
        (checkout / "notes.txt").unlink()
        state = take(Settings(project_root=checkout))
        assert state.commit.endswith("-dirty")
        git(checkout, "checkout", "--", ".")
        subprocess.run(
            ["git", "-C", str(checkout), "apply"], input=state.patch, text=True, check=True
        )
        assert (checkout / "model.py").read_text() == "rounds = 20\n"
        assert not (checkout / "notes.txt").exists()

    def test_code_that_git_does_not_know_is_named(self, checkout):
        (checkout / "new.py").write_text("x = 1\n")
        (checkout / "secrets.env").write_text("x = 1\n")
        state = take(Settings(project_root=checkout))
        assert dict(state.left_out) == {"new.py": "git does not know it"}

    @pytest.mark.parametrize(
        "line", ["password=hunter22", "url = postgresql://me:hunter22@host/db", "key: hunter22"]
    )
    def test_a_file_that_holds_a_secret_stays_out_and_the_others_do_not(self, checkout, line):
        (checkout / "notes.txt").write_text(f"{line}\n")
        (checkout / "model.py").write_text("rounds = 20\n")
        settings = Settings(
            project_root=checkout, tracking={"uri": "postgresql://t:hunter22@host/mlflow"}
        )
        state = take(settings)
        assert "hunter22" not in state.model_dump_json()
        assert "rounds = 20" in state.patch
        assert "secret" in state.left_out["notes.txt"]

    def test_what_is_no_text_stays_out(self, checkout):
        (checkout / "notes.txt").write_bytes(b"caf\xe9\n")
        assert "UTF-8" in take(Settings(project_root=checkout)).left_out["notes.txt"]

    def test_a_folder_under_no_git_has_no_state(self, tmp_path):
        assert take(Settings(project_root=tmp_path)) == code_state.CodeState(commit=None)


def test_what_is_beyond_the_limit_is_left_out():
    parts = [f"diff --git a/f{n} b/f{n}\n+{'x' * (MAX_PATCH_BYTES // 3)}\n" for n in range(4)]
    patch, left_out = choose("".join(parts))
    assert patch == parts[0] + parts[1]
    assert list(left_out) == ["f2", "f3"]


class TestHandOver:
    def test_a_job_receives_what_its_command_found(self, checkout):
        (checkout / "model.py").write_text("rounds = 20\n")
        settings = Settings(project_root=checkout)
        state = take(settings)
        _, name = hand_over(settings, state)
        assert receive(settings, name) == state

    def test_without_git_nothing_is_handed_over(self, tmp_path):
        settings = Settings(project_root=tmp_path)
        assert hand_over(settings, take(settings)) == []

    @pytest.mark.parametrize("name", ["../../pyproject", "0" * 64, ""])
    def test_a_name_of_nothing_is_refused(self, checkout, name):
        with pytest.raises(UserError, match="no state of the code"):
            receive(Settings(project_root=checkout), name)


class TestCodeDigest:
    def test_it_changes_with_the_declarations_of_the_use_case_alone(self, tmp_path):
        settings = Settings(project_root=tmp_path)
        for use_case in ("mine", "other"):
            (tmp_path / "feature_repo" / use_case).mkdir(parents=True)
            (tmp_path / "feature_repo" / use_case / "model.py").write_text("a = 1\n")
        before = code_state.code_digest(settings, "mine")
        (tmp_path / "feature_repo" / "other" / "model.py").write_text("a = 2\n")
        assert code_state.code_digest(settings, "mine") == before
        (tmp_path / "feature_repo" / "mine" / "model.py").write_text("a = 2\n")
        assert code_state.code_digest(settings, "mine") != before
