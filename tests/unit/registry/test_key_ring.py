from pathlib import Path

import pytest

from bundles import add_version
from penstock import audit
from penstock.errors import GateRefusedError, IntegrityError, NotFoundError, UserError
from penstock.registry import key_ring, signing
from penstock.registry.package import verify
from penstock.registry.versions import ModelRegistry
from penstock.settings import Settings


def check(project, version):
    registry = ModelRegistry(project)
    found = registry.resolve("spills", version)
    return verify(Path(found.path), project, digest=found.digest)


def test_after_a_rotation_old_versions_are_loaded_and_new_ones_bear_the_new_key(project):
    add_version(project, "run-1")
    (before,) = key_ring.list_keys(project)
    assert before.signs
    assert before.versions == ("spills 1",)
    made = key_ring.rotate(project)
    add_version(project, "run-2")
    keys = [check(project, version).manifest.key_id for version in (1, 2)]
    assert keys == [before.key_id, made.key_id]
    known = {key.key_id: (key.signs, key.versions) for key in key_ring.list_keys(project)}
    assert known == {
        before.key_id: (False, ("spills 1",)),
        made.key_id: (True, ("spills 2",)),
    }
    assert [record.action for record in audit.records(project)] == ["key.rotate"]


def test_nothing_that_a_distrusted_key_has_sealed_is_loaded(project):
    add_version(project, "run-1")
    (key,) = key_ring.list_keys(project)
    with pytest.raises(GateRefusedError, match="signs with"):
        key_ring.distrust(project, key.key_id)
    key_ring.rotate(project)
    with pytest.raises(GateRefusedError, match="has sealed spills 1"):
        key_ring.distrust(project, key.key_id)
    assert check(project, 1)
    key_ring.distrust(project, key.key_id, even_in_use=True)
    with pytest.raises(IntegrityError, match="signed by no key"):
        check(project, 1)
    assert [record.action for record in audit.records(project)] == ["key.rotate", "key.distrust"]


def test_another_installations_key_is_trusted_by_its_file(project, tmp_path):
    theirs = Settings(project_root=tmp_path / "theirs")
    key_id = signing.make_key(theirs.keys_path)
    file = signing.trusted_folder(theirs.keys_path) / f"{key_id}.pub"
    signing.make_key(project.keys_path)
    assert key_ring.trust(project, file).key_id == key_id
    assert key_id in signing.trusted_keys(project.keys_path)
    assert not key_ring.distrust(project, key_id).signs
    assert key_id not in signing.trusted_keys(project.keys_path)


def test_a_file_that_is_no_key_is_not_trusted(project, tmp_path):
    file = tmp_path / "0123456789abcdef.pub"
    with pytest.raises(UserError, match="there is no file"):
        key_ring.trust(project, file)
    file.write_text("no key")
    with pytest.raises(IntegrityError, match="cannot be read as a public key"):
        key_ring.trust(project, file)
    assert list(audit.records(project)) == []


def test_an_unknown_key_is_named_with_those_that_there_are(project):
    key_id = signing.make_key(project.keys_path)
    with pytest.raises(NotFoundError, match=key_id):
        key_ring.distrust(project, "beef")


def test_before_the_first_registration_there_is_no_key(project):
    assert key_ring.list_keys(project) == []
    assert key_ring.rotate(project).signs
