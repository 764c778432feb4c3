import json
from collections.abc import Callable
from functools import partial

import pytest

from penstock import audit
from penstock.errors import IntegrityError, UserError
from penstock.settings import Settings

Run = Callable[..., str]


@pytest.fixture
def run(run_in) -> Run:
    return partial(run_in, "audit")


def test_before_anything_happened_it_says_what_will_be_there(run: Run):
    assert "No record yet" in run("show")
    assert run("verify").startswith("0 records")


def test_it_shows_when_who_what(empty_project: Settings, run: Run):
    audit.append(empty_project, "model.promote", "spills 2", {"reason": "it is better"})
    audit.append(empty_project, "deployment.serve", "floods 1")
    text = run("show")
    assert "ada" in text
    assert "it is better" in text
    assert [r["subject"] for r in json.loads(run("show", "--json", "--subject", "spills"))] == [
        "spills 2"
    ]
    assert [r["number"] for r in json.loads(run("show", "--json", "--last", "1"))] == [2]


def test_a_subject_is_a_whole_name(empty_project: Settings, run: Run):
    audit.append(empty_project, "model.promote", "spills_two 1")
    assert json.loads(run("show", "--json", "--subject", "spills")) == []


def test_the_head_that_verify_prints_is_one_that_it_takes(empty_project: Settings, run: Run):
    audit.append(empty_project, "model.promote", "spills 2")
    head = run("verify").split()[-1]
    assert run("verify", "--head", head).startswith("1 records")


def test_a_changed_record_ends_it_with_the_records_number(empty_project: Settings, run: Run):
    audit.append(empty_project, "model.promote", "spills 2")
    file = audit.log_file(empty_project)
    file.write_bytes(file.read_bytes().replace(b"spills 2", b"spills 3"))
    with pytest.raises(IntegrityError, match="record 1 of the audit log") as caught:
        run("verify")
    assert caught.value.exit_code == 1


def test_a_head_that_is_none_is_refused(run: Run):
    with pytest.raises(UserError, match="--head is '5'"):
        run("verify", "--head", "5")
