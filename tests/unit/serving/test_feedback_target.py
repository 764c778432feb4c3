import pytest

from feedback import MODEL, registered
from penstock.errors import DeclarationError, IntegrityError, NotFoundError
from penstock.serving import feedback_target
from penstock.serving.feedback_target import find_target, newest_package


def test_the_signed_version_says_which_fields_name_an_entity_and_the_declarations_the_rest(
    tmp_path,
):
    target = find_target(registered(tmp_path), MODEL)
    assert [field.name for field in target.entity_fields] == ["CUSTOMER_ID", "CITY", "IS_NEW"]
    assert (target.use_case, target.is_binary) == ("card_fraud", True)


def test_a_model_of_numbers_has_numbers_as_truth(tmp_path):
    assert not find_target(registered(tmp_path, use_case="bike_demand"), MODEL).is_binary


def test_the_newest_version_is_asked(tmp_path):
    for number in (9, 10):
        settings = registered(tmp_path, number=number)
    (settings.models_path / MODEL / ".sealing-11-x").mkdir()
    assert newest_package(settings, MODEL).name == "10"


@pytest.mark.parametrize("model", ["nobody", "..", "", f"{MODEL}/1"])
def test_a_name_that_nobody_registered_leads_nowhere(tmp_path, model):
    settings = registered(tmp_path)
    with pytest.raises(NotFoundError):
        find_target(settings, model)


def test_a_model_without_a_version_is_not_there_yet(tmp_path):
    settings = registered(tmp_path)
    (settings.models_path / "begun").mkdir()
    with pytest.raises(NotFoundError, match="no version of begun"):
        find_target(settings, "begun")


def test_a_package_that_was_changed_says_nothing(tmp_path):
    settings = registered(tmp_path)
    (settings.models_path / MODEL / "1" / "signature.json").write_text("{}")
    with pytest.raises(IntegrityError):
        find_target(settings, MODEL)


def test_a_declared_table_of_that_name_is_never_mixed_with_feedback(tmp_path, monkeypatch):
    settings = registered(tmp_path)
    monkeypatch.setattr(feedback_target, "load_tables", lambda *_: {"card_fraud.feedback": None})
    with pytest.raises(DeclarationError, match="which is where its feedback goes"):
        find_target(settings, MODEL)
