import sys
from pathlib import Path

import pytest

from payments import SERVICE, USE_CASE, settings_in
from penstock.errors import UserError
from penstock.features.declarations import load_feature_objects
from penstock.features.suggested_service import check_target, service_text
from real_data import REPO_ROOT

KEPT = ["TX_AMOUNT", "TERMINAL_ID_RISK_7DAY_WINDOW", "CUSTOMER_ID_NB_TX_1DAY_WINDOW"]


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path)


def declared_by(text: str):
    scope: dict[str, object] = {}
    exec(compile(text, "suggested.py", "exec"), scope)  # noqa: S102  # it is what a user would run
    return scope


class TestText:
    def test_it_declares_the_kept_features_in_the_services_order(self, settings):
        text = service_text(settings, USE_CASE, SERVICE, KEPT, notes=["Kept: what matters."])
        service = declared_by(text)[f"{SERVICE}_selected"]
        names = [f.name for p in service.feature_view_projections for f in p.features]
        assert names == [
            "TX_AMOUNT",
            "CUSTOMER_ID_NB_TX_1DAY_WINDOW",
            "TERMINAL_ID_RISK_7DAY_WINDOW",
        ]

    def test_all_features_are_the_service_itself(self, settings):
        whole = load_feature_objects(settings, USE_CASE).service(SERVICE)
        names = [f.name for p in whole.feature_view_projections for f in p.features]
        text = service_text(settings, USE_CASE, SERVICE, names, notes=[])
        made = declared_by(text)[f"{SERVICE}_selected"]
        assert made.feature_view_projections == whole.feature_view_projections

    def test_its_notes_stand_in_its_head(self, settings):
        text = service_text(settings, USE_CASE, SERVICE, KEPT, notes=["Because it's so."])
        assert "Because it's so." in declared_by(text)["__doc__"]

    def test_where_nothing_is_kept_it_declares_nothing(self, settings):
        text = service_text(settings, USE_CASE, SERVICE, [], notes=[])
        assert "nothing to suggest" in text
        assert "FeatureService" not in declared_by(text)

    def test_making_it_declares_nothing(self, settings):
        before = load_feature_objects(settings, USE_CASE).services.keys()
        service_text(settings, USE_CASE, SERVICE, KEPT, notes=[])
        assert load_feature_objects(settings, USE_CASE).services.keys() == before

    def test_it_is_formatted_as_the_project_is(self, settings, tmp_path):
        import subprocess

        file = tmp_path / "suggested.py"
        file.write_text(service_text(settings, USE_CASE, SERVICE, KEPT[:2], notes=["Note."]))
        ruff = str(Path(sys.executable).parent / "ruff")
        config = str(REPO_ROOT / "pyproject.toml")
        for command in (["format", "--check"], ["check"]):
            subprocess.run([ruff, *command, "--config", config, str(file)], check=True)


class TestTarget:
    def test_the_feature_repo_is_no_place_for_it(self, settings):
        with pytest.raises(UserError, match="feast apply"):
            check_target(settings, settings.feature_repo_path / USE_CASE / "suggested.py")

    def test_any_other_place_is(self, settings, tmp_path):
        check_target(settings, tmp_path / "suggested.py")
