import json
import multiprocessing
import os
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from penstock import audit
from penstock.errors import IntegrityError
from penstock.settings import Settings


@pytest.fixture
def project(tmp_path: Path) -> Settings:
    return Settings(project_root=tmp_path, actor="ada")


def write(project: Settings, count: int) -> list[audit.AuditRecord]:
    return [audit.append(project, "model.promote", f"spills {n}") for n in range(1, count + 1)]


class TestAppend:
    def test_records_are_numbered_and_each_holds_the_hash_of_the_one_before(self, project):
        first, second = write(project, 2)
        assert (first.number, first.previous) == (1, "0" * 64)
        assert (second.number, second.previous) == (2, first.hash)
        assert [record.actor for record in audit.records(project)] == ["ada", "ada"]
        assert list(audit.records(project)) == [first, second]

    def test_a_change_that_is_told_of_twice_stands_once(self, project):
        first = audit.append(project, "model.promote", "spills 2", key="move spills 1")
        audit.append(project, "model.promote", "spills 3", key="move spills 2")
        assert audit.append(project, "model.promote", "spills 2", key="move spills 1") == first
        assert audit.verify(project).number == 2

    def test_what_a_killed_writer_left_at_the_end_is_cut_off(self, project):
        write(project, 2)
        with audit.log_file(project).open("ab") as opened:
            opened.write(b'{"number":3,"act')
        assert audit.verify(project).number == 2
        assert audit.append(project, "key.trust", "k").number == 3
        assert audit.verify(project).number == 3

    def test_killed_before_the_head_was_noted_the_record_stands(self, project):
        write(project, 2)
        head = audit.head_file(project)
        before = head.read_bytes()
        write(project, 1)
        head.write_bytes(before)
        assert audit.verify(project).number == 3
        assert audit.append(project, "key.trust", "k").number == 4

    def test_nothing_follows_a_last_line_that_is_no_record(self, project):
        write(project, 1)
        with audit.log_file(project).open("ab") as opened:
            opened.write(b"nonsense\n")
        with pytest.raises(IntegrityError, match="no record"):
            write(project, 1)

    def test_nothing_follows_a_log_that_was_cut(self, project):
        write(project, 3)
        lines = audit.log_file(project).read_bytes().splitlines(keepends=True)
        audit.log_file(project).write_bytes(b"".join(lines[:2]))
        with pytest.raises(IntegrityError, match="record 3 of the audit log is missing"):
            write(project, 1)

    def test_several_processes_write_one_chain(self, project):
        context = multiprocessing.get_context("spawn")
        writers = [context.Process(target=write, args=(project, 20)) for _ in range(3)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert audit.verify(project).number == 60


class TestVerify:
    def test_nothing_written_is_nothing_bad(self, project):
        assert audit.verify(project) == audit.NOTHING

    @hypothesis_settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_any_byte_that_is_changed_is_found(self, tmp_path_factory, data):
        project = Settings(project_root=tmp_path_factory.mktemp("flip"), actor="ada")
        write(project, 3)
        file = audit.log_file(project)
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
        file.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"record \d of the audit log"):
            audit.verify(project)

    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    def test_the_first_bad_record_is_named(self, project, number):
        write(project, 4)
        file = audit.log_file(project)
        lines = file.read_bytes().splitlines(keepends=True)
        lines[number - 1] = lines[number - 1].replace(b"promote", b"approve")
        file.write_bytes(b"".join(lines))
        with pytest.raises(IntegrityError, match=f"record {number} of"):
            audit.verify(project)

    @pytest.mark.parametrize("taken", [1, 2, 3])
    def test_a_record_that_was_taken_out_is_missed(self, project, taken):
        write(project, 3)
        file = audit.log_file(project)
        lines = file.read_bytes().splitlines(keepends=True)
        del lines[taken - 1]
        file.write_bytes(b"".join(lines))
        with pytest.raises(IntegrityError, match=f"record {taken} of"):
            audit.verify(project)

    def test_records_that_changed_places_are_found(self, project):
        write(project, 3)
        file = audit.log_file(project)
        first, second, third = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(second + first + third)
        with pytest.raises(IntegrityError, match="record 1 of"):
            audit.verify(project)

    def test_a_chain_that_was_forged_whole_does_not_hold_the_head_that_was_noted(self, project):
        noted = write(project, 2)[1].head
        parts = [orjson.loads(line) for line in audit.log_file(project).read_bytes().splitlines()]
        audit.log_file(project).unlink()
        audit.head_file(project).unlink()
        for part in parts:
            audit.append(project, "model.promote", part["subject"], {"reason": "forged"})
        assert audit.verify(project).number == 2
        with pytest.raises(IntegrityError, match="record 2 of"):
            audit.verify(project, expected=noted)

    def test_a_head_that_was_noted_and_is_not_reached_is_missed(self, project):
        noted = write(project, 2)[1].head
        assert audit.verify(project, expected=noted).number == 2
        further = noted.model_copy(update={"number": 5})
        with pytest.raises(IntegrityError, match="number 5 was noted elsewhere"):
            audit.verify(project, expected=further)

    @pytest.mark.parametrize("content", [None, b"", b"{}"])
    def test_a_head_that_is_gone_or_damaged_is_told_of(self, project, content):
        write(project, 2)
        audit.head_file(project).unlink()
        if content is not None:
            audit.head_file(project).write_bytes(content)
        with pytest.raises(IntegrityError, match=r"head\.json is not what was written"):
            audit.verify(project)


def test_who_acts_is_the_user_and_the_machine_where_nobody_says_otherwise(tmp_path):
    user, _, machine = Settings(project_root=tmp_path).acting.partition("@")
    assert user
    assert machine == os.uname().nodename


def test_a_job_acts_for_whoever_gave_the_command(tmp_path):
    settings = Settings(project_root=tmp_path, actor="ada")
    assert settings.actor_environment() == {"PENSTOCK_ACTOR": "ada"}


def test_no_field_of_a_record_is_outside_its_hash(project):
    write(project, 1)
    (line,) = audit.log_file(project).read_text().splitlines()
    assert set(json.loads(line)) == set(audit.AuditRecord.model_fields)
