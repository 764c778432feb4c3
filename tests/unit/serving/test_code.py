from pathlib import Path

from penstock.serving.code import freeze_code
from penstock.settings import Settings


def project(folder: Path) -> Settings:
    use_case = folder / "feature_repo" / "spills"
    use_case.mkdir(parents=True)
    (use_case / "views.py").write_text("A = 1\n")
    (use_case / "__pycache__").mkdir()
    (use_case / "__pycache__" / "views.pyc").write_bytes(b"\0")
    (folder / "feature_repo" / "big.parquet").write_bytes(b"\0" * 100)
    (folder / "pyproject.toml").write_text("[tool.penstock]\n")
    return Settings(project_root=folder)


def test_the_copy_holds_settings_declarations_and_the_package(tmp_path: Path):
    code = freeze_code(project(tmp_path))
    files = {str(p.relative_to(code)) for p in code.rglob("*") if p.is_file()}
    assert {"pyproject.toml", "feature_repo/spills/views.py", "penstock/serving/code.py"} <= files
    assert not any("pycache" in name or name.endswith(".parquet") for name in files)


def test_the_same_content_is_the_same_folder(tmp_path: Path):
    settings = project(tmp_path)
    assert freeze_code(settings) == freeze_code(settings)
    assert len(list((tmp_path / ".penstock" / "serving" / "code").glob("[!.]*"))) == 1


def test_an_edit_while_it_copies_does_not_get_in_under_the_digest_of_the_old(
    tmp_path: Path, monkeypatch
):
    settings = project(tmp_path)
    views = tmp_path / "feature_repo" / "spills" / "views.py"
    read_bytes = Path.read_bytes

    def read_then_edit(path: Path) -> bytes:
        content = read_bytes(path)
        if path == views:
            views.write_text("A = 2\n")
        return content

    monkeypatch.setattr(Path, "read_bytes", read_then_edit)
    code = freeze_code(settings)
    assert (code / "feature_repo" / "spills" / "views.py").read_text() == "A = 1\n"


def test_what_a_killed_copy_left_is_removed_and_taken_for_nothing(tmp_path: Path):
    settings = project(tmp_path)
    code = freeze_code(settings)
    left = code.with_name(f".freezing-{code.name}")
    code.rename(left)
    (left / "pyproject.toml").unlink()
    assert (freeze_code(settings) / "pyproject.toml").is_file()
    assert not left.exists()


def test_a_later_edit_does_not_reach_an_earlier_copy(tmp_path: Path):
    settings = project(tmp_path)
    before = freeze_code(settings)
    (tmp_path / "feature_repo" / "spills" / "views.py").write_text("A = 2\n")
    after = freeze_code(settings)
    assert after != before
    assert (before / "feature_repo" / "spills" / "views.py").read_text() == "A = 1\n"
