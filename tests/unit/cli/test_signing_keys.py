import json
from collections.abc import Callable
from functools import partial

import pytest

from penstock.errors import GateRefusedError

Run = Callable[..., str]


@pytest.fixture
def run(run_in) -> Run:
    return partial(run_in, "signing-keys")


def test_keys_are_made_listed_and_trusted_no_more(run: Run):
    assert "No key yet" in run("list")
    first = json.loads(run("rotate", "--json"))["key_id"]
    second = json.loads(run("rotate", "--json"))["key_id"]
    assert {key["key_id"]: key["signs"] for key in json.loads(run("list", "--json"))} == {
        first: False,
        second: True,
    }
    assert f"{second} signs" in run("list")
    assert run("distrust", first).startswith(f"{first} is trusted no more")
    with pytest.raises(GateRefusedError, match="signs with"):
        run("distrust", second)


def test_another_installations_key_is_trusted(run: Run, tmp_path):
    from penstock.registry import signing

    theirs = tmp_path / "theirs"
    key_id = signing.make_key(theirs)
    assert key_id in run("trust", str(signing.trusted_folder(theirs) / f"{key_id}.pub"))
