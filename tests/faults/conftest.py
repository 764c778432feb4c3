from collections.abc import Iterator

import pytest

from penstock.serving.deploy import undeploy
from penstock.settings import Settings
from rolled import MODEL, Rolled
from small_model import SmallRun


@pytest.fixture(scope="module")
def rolled(small_run: tuple[Settings, SmallRun]) -> Iterator[Rolled]:
    mine, run = small_run
    made = Rolled(mine, run)
    try:
        made.deploy(made.register())
        yield made
    finally:
        undeploy(mine, MODEL)
