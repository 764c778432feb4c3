from pathlib import Path

from penstock.serving import shared_targets
from penstock.settings import Settings


def test_what_is_aimed_at_is_listed_until_it_is_forgotten(tmp_path: Path):
    settings = Settings(project_root=tmp_path)
    assert shared_targets.shared_models(settings) == []
    for model in ("gauges", "dams"):
        shared_targets.aim(settings, model, b"{}")
    # What a killed writer leaves is no model.
    shared_targets.target_path(settings, ".dams.json.new").with_suffix("").touch()
    assert shared_targets.shared_models(settings) == ["dams", "gauges"]
    assert shared_targets.is_shared(settings, "dams")
    shared_targets.forget(settings, "dams")
    shared_targets.forget(settings, "dams")
    assert shared_targets.shared_models(settings) == ["gauges"]
    assert not shared_targets.is_shared(settings, "dams")
