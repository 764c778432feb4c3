from pathlib import Path

import pytest

from penstock.errors import DeclarationError, NotFoundError
from penstock.settings import Settings
from penstock.use_cases import import_declarations, list_use_cases, split_name


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    folder = tmp_path / "feature_repo" / "churn_of_mine"
    folder.mkdir(parents=True)
    (folder / "tables.py").write_text("events = 1\n")
    (folder / "broken.py").write_text("1 / 0\n")
    return Settings(project_root=tmp_path)


class TestImportDeclarations:
    def test_a_use_case_is_a_folder_with_tables(self, settings: Settings):
        assert list_use_cases(settings) == ["churn_of_mine"]
        assert import_declarations(settings, "churn_of_mine", "tables").events == 1

    def test_a_wrong_name_gets_the_nearest(self, settings: Settings):
        with pytest.raises(NotFoundError, match="did you mean 'churn_of_mine'"):
            import_declarations(settings, "churn_of_mime", "tables")

    def test_a_module_that_fails_is_named_with_its_error(self, settings: Settings):
        with pytest.raises(DeclarationError, match=r"broken\.py cannot be imported: ZeroDivision"):
            import_declarations(settings, "churn_of_mine", "broken")


class TestSplitName:
    @pytest.mark.parametrize("name", ["transactions", "a.b.c", ".b", "a.", ""])
    def test_refuses_what_has_not_two_parts(self, name: str):
        with pytest.raises(DeclarationError):
            split_name(name)

    def test_splits_at_the_dot(self):
        assert split_name("card_fraud.transactions") == ("card_fraud", "transactions")
