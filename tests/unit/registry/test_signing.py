import pickle
import stat
import subprocess
import sys

import pytest

from penstock.errors import IntegrityError
from penstock.registry.signing import find_signer, open_signer, trusted_keys


def test_the_first_use_makes_a_private_key_that_only_its_owner_can_read(tmp_path):
    keys = tmp_path / "keys"
    open_signer(keys)
    assert stat.S_IMODE((keys / "signing.key").stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700


def test_a_signature_holds_for_the_signed_bytes_and_for_no_others(tmp_path):
    signer = open_signer(tmp_path)
    signature = signer.sign(b"manifest")
    assert find_signer(b"manifest", signature, tmp_path) == signer.key_id
    assert find_signer(b"manifesu", signature, tmp_path) is None
    assert find_signer(b"manifest", signature + b"\0", tmp_path) is None


def test_the_same_key_is_used_again(tmp_path):
    assert open_signer(tmp_path).key_id == open_signer(tmp_path).key_id
    assert len(trusted_keys(tmp_path)) == 1


def test_a_key_of_another_installation_is_trusted_once_its_public_half_is_put_there(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    open_signer(ours)
    signer = open_signer(theirs)
    signature = signer.sign(b"manifest")
    assert find_signer(b"manifest", signature, ours) is None
    public = f"trusted/{signer.key_id}.pub"
    (ours / public).write_bytes((theirs / public).read_bytes())
    assert find_signer(b"manifest", signature, ours) == signer.key_id


def test_a_key_that_is_no_longer_trusted_neither_signs_nor_verifies(tmp_path):
    signer = open_signer(tmp_path)
    signature = signer.sign(b"manifest")
    (tmp_path / f"trusted/{signer.key_id}.pub").unlink()
    assert find_signer(b"manifest", signature, tmp_path) is None
    with pytest.raises(IntegrityError, match="not among the trusted keys"):
        open_signer(tmp_path)


def test_a_private_key_that_others_can_read_is_refused(tmp_path):
    open_signer(tmp_path)
    (tmp_path / "signing.key").chmod(0o640)
    with pytest.raises(IntegrityError, match="0640"):
        open_signer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n"])
def test_a_broken_private_key_is_refused_without_showing_it(tmp_path, content):
    open_signer(tmp_path)
    (tmp_path / "signing.key").write_bytes(content)
    with pytest.raises(IntegrityError, match="cannot be read as a private key") as caught:
        open_signer(tmp_path)
    assert "AAAA" not in str(caught.value)


def test_a_trusted_file_that_holds_another_key_than_its_name_says_is_refused(tmp_path):
    signer = open_signer(tmp_path / "a")
    other = open_signer(tmp_path / "b")
    (tmp_path / f"a/trusted/{signer.key_id}.pub").write_bytes(
        (tmp_path / f"b/trusted/{other.key_id}.pub").read_bytes()
    )
    with pytest.raises(IntegrityError, match="that its name says"):
        find_signer(b"manifest", signer.sign(b"manifest"), tmp_path / "a")


def test_a_signer_shows_its_id_and_nothing_of_its_key(tmp_path):
    signer = open_signer(tmp_path)
    assert repr(signer) == f"Signer(key_id={signer.key_id!r})"
    with pytest.raises(TypeError, match="private key"):
        pickle.dumps(signer)


def test_a_killed_first_use_leaves_nothing_that_stops_the_next(tmp_path):
    (tmp_path / "trusted").mkdir()
    (tmp_path / ".signing.key.new").write_bytes(b"half a k")
    signer = open_signer(tmp_path)
    assert find_signer(b"m", signer.sign(b"m"), tmp_path) == signer.key_id


_OPEN = """
import sys
from pathlib import Path
from penstock.registry.signing import open_signer
print(open_signer(Path(sys.argv[1])).key_id)
"""


def test_many_first_users_at_once_end_with_one_key(tmp_path):
    # Programs of their own: a fork of a process with threads (Ray's, by now) can hang.
    users = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    said = {user.communicate(timeout=60)[0] for user in users}
    assert [user.returncode for user in users] == [0] * len(users)
    assert len(said) == 1
    assert len(trusted_keys(tmp_path)) == 1
