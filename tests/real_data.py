"""Where the tests of right answers find their input: real data that stands beside the project."""

from pathlib import Path

import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent
DATA = REPO_ROOT.parent / "shared" / "data"


def _need(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"the published data is not there: {folder}")
    return folder


def card_fraud_files(*months: str) -> list[Path]:
    """The published payments, one Parquet file a month ("2018-04" to "2018-08"); all by default."""
    folder = _need(DATA / "card_fraud" / "transactions")
    return sorted(p for p in folder.glob("*.parquet") if not months or p.stem in months)


def reference_features() -> list[Path]:
    """The 14 derived features as their authors published them, July and August."""
    return sorted(_need(DATA / "card_fraud" / "reference_features").glob("*.parquet"))


def bike_readings() -> Path:
    """The published readings of five bike-share stations."""
    return _need(DATA / "toulouse_bikes") / "toulouse_bikes.parquet"
