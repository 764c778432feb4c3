"""What a run ran on."""

import subprocess

from penstock.training import environment


def git(folder, *arguments):
    who = ("-c", "user.name=Tester", "-c", "user.email=tester@example.org")
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


class TestGitCommit:
    def test_a_commit_is_named_and_a_changed_file_makes_it_dirty(self, tmp_path):
        git(tmp_path, "init")
        (tmp_path / "file").write_text("one")
        git(tmp_path, "add", "file")
        git(tmp_path, "commit", "-m", "first")
        commit = environment.git_commit(tmp_path)
        assert commit is not None
        assert len(commit) == 40
        (tmp_path / "file").write_text("two")
        assert environment.git_commit(tmp_path) == f"{commit}-dirty"

    def test_a_folder_under_no_git_has_none(self, tmp_path):
        assert environment.git_commit(tmp_path) is None


class TestPackages:
    def test_they_hold_python_and_what_is_installed(self):
        found = environment.packages()
        assert found["python"].startswith("3.")
        assert "polars" in found

    def test_the_digest_changes_with_any_version(self):
        versions = {"python": "3.11.1", "polars": "2.1.0"}
        assert environment.digest(versions) == environment.digest(dict(reversed(versions.items())))
        assert environment.digest(versions) != environment.digest(versions | {"polars": "2.1.1"})
