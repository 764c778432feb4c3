import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundles import native_score, write_bundle
from penstock.errors import IntegrityError
from penstock.registry.package import (
    MANIFEST_FILE,
    MANIFEST_SIGNATURE_FILE,
    read_bundle,
    remove_unfinished,
    seal,
    verify,
)
from penstock.registry.signing import open_signer
from penstock.settings import Settings

CARD = "# spills 1\n"


def sealed(root: Path, version: int = 1) -> tuple[Path, Settings]:
    config = Settings(project_root=root)
    bundle = root / f"bundle-{version}"
    write_bundle(bundle, run_id=f"run-{version}")
    folder = config.models_path / "spills" / str(version)
    seal(read_bundle(bundle, model="spills"), folder, config, version=version, card=CARD)
    return folder, config


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings]:
    return sealed(tmp_path_factory.mktemp("original"))


@pytest.fixture
def package(original: tuple[Path, Settings], tmp_path: Path) -> tuple[Path, Settings]:
    """A copy that the test may spoil; the keys are the original's."""
    folder = tmp_path / "spills/1"
    shutil.copytree(original[0], folder)
    return folder, original[1]


def every_file(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


class TestVerify:
    def test_a_sealed_package_verifies_and_hands_out_its_bytes(self, original):
        folder, config = original
        package = verify(folder, config)
        assert package.onnx == (folder / "model.onnx").read_bytes()
        assert package.signature.feature_names == ("amount", "count_7d", "risk_7d")
        assert package.signature.request_fields[1].dtype == "timestamp"
        assert package.training["run_id"] == "run-1"
        assert package.files["card.md"] == CARD.encode()
        assert set(package.files) == set(every_file(folder)) - {"manifest.json", "manifest.sig"}

    def test_the_verified_graph_runs_and_agrees_with_the_native_weights(self, original):
        import onnxruntime

        session = onnxruntime.InferenceSession(verify(*original).onnx)
        rows = np.array([[50.0, 10.0, np.nan], [220.0, 2.0, 0.9]])
        (scores,) = session.run(["score"], {"features": rows})
        assert scores == pytest.approx(native_score(rows), abs=1e-6)

    def test_the_bytes_handed_out_are_those_that_were_read_once(self, package):
        folder, config = package
        held = verify(folder, config)
        (folder / "model.onnx").write_bytes(b"evil")
        assert held.onnx != b"evil"

    def test_of_a_thousand_flipped_bytes_in_all_files_each_is_refused(self, package):
        folder, config = package
        chance = random.Random(7)
        names = every_file(folder)
        num_refused = 0
        for number in range(1_000):
            file = folder / names[number % len(names)]
            content = file.read_bytes()
            spoiled = bytearray(content)
            spoiled[chance.randrange(len(content))] ^= chance.randrange(1, 256)
            file.write_bytes(spoiled)
            try:
                verify(folder, config)
            except IntegrityError:
                num_refused += 1
            file.write_bytes(content)
        assert num_refused == 1_000
        verify(folder, config)

    # Flips of every byte would take minutes; hypothesis picks the file, the byte and the bit.
    @given(data=st.data())
    @settings(
        max_examples=60,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    def test_one_flipped_bit_in_any_file_is_found_and_its_file_named(self, package, data):
        folder, config = package
        name = data.draw(st.sampled_from(every_file(folder)))
        content = (folder / name).read_bytes()
        bit = data.draw(st.integers(0, len(content) * 8 - 1))
        spoiled = bytearray(content)
        spoiled[bit // 8] ^= 1 << bit % 8
        (folder / name).write_bytes(spoiled)
        try:
            with pytest.raises(IntegrityError) as caught:
                verify(folder, config)
        finally:
            (folder / name).write_bytes(content)
        named = MANIFEST_FILE if name == MANIFEST_SIGNATURE_FILE else name
        assert str(folder / named) in caught.value.found
        verify(folder, config)

    def test_a_flipped_bit_anywhere_in_manifest_and_signature_is_found(self, package):
        folder, config = package
        for name in (MANIFEST_FILE, MANIFEST_SIGNATURE_FILE):
            content = (folder / name).read_bytes()
            for position in range(0, len(content), 13):
                spoiled = bytearray(content)
                spoiled[position] ^= 1 << position % 8
                (folder / name).write_bytes(spoiled)
                with pytest.raises(IntegrityError):
                    verify(folder, config)
            (folder / name).write_bytes(content)

    def test_a_truncated_a_longer_and_a_missing_file_are_each_named(self, package):
        folder, config = package
        for name in every_file(folder):
            content = (folder / name).read_bytes()
            for spoiled in (content[:-1], content + b"\0", b"", None):
                if spoiled is None:
                    (folder / name).unlink()
                else:
                    (folder / name).write_bytes(spoiled)
                with pytest.raises(IntegrityError, match=r"next|do not load|restore") as caught:
                    verify(folder, config)
                assert str(folder) in caught.value.found
                (folder / name).write_bytes(content)

    def test_a_file_too_many_is_refused(self, package):
        folder, config = package
        (folder / "native/sitecustomize.py").write_text("import os")
        with pytest.raises(IntegrityError, match=r"native/sitecustomize\.py is not in the mani"):
            verify(folder, config)

    def test_an_empty_folder_too_many_is_refused(self, package):
        folder, config = package
        (folder / "extra").mkdir()
        with pytest.raises(IntegrityError, match="extra is an empty folder"):
            verify(folder, config)

    def test_a_link_is_refused_even_to_the_right_bytes(self, package, tmp_path):
        folder, config = package
        (folder / "model.onnx").rename(tmp_path / "moved.onnx")
        (folder / "model.onnx").symlink_to(tmp_path / "moved.onnx")
        with pytest.raises(IntegrityError, match=r"model\.onnx is a link"):
            verify(folder, config)

    def test_a_linked_folder_is_refused(self, package, tmp_path):
        folder, config = package
        (folder / "native").rename(tmp_path / "native")
        (folder / "native").symlink_to(tmp_path / "native")
        with pytest.raises(IntegrityError, match="native is a link"):
            verify(folder, config)

    def test_the_manifest_of_another_version_does_not_fit(self, tmp_path):
        first, config = sealed(tmp_path, 1)
        second, _ = sealed(tmp_path, 2)
        for name in (MANIFEST_FILE, MANIFEST_SIGNATURE_FILE):
            (first / name).write_bytes((second / name).read_bytes())
        with pytest.raises(IntegrityError, match=r"training\.json has not the signed SHA-256"):
            verify(first, config)

    def test_an_older_version_cannot_pose_as_a_newer_one(self, tmp_path):
        first, config = sealed(tmp_path, 1)
        second, _ = sealed(tmp_path, 2)
        shutil.rmtree(second)
        shutil.copytree(first, second)
        with pytest.raises(IntegrityError, match="is the one of spills version 1"):
            verify(second, config)

    def test_a_package_sealed_again_is_not_the_registered_one(self, tmp_path):
        folder, config = sealed(tmp_path)
        registered = verify(folder, config).digest
        shutil.rmtree(folder)
        seal(
            read_bundle(tmp_path / "bundle-1", model="spills"), folder, config, version=1, card=CARD
        )
        with pytest.raises(IntegrityError, match="not the one that was registered"):
            verify(folder, config, digest=registered)

    def test_a_package_of_an_untrusted_key_is_refused(self, package, tmp_path):
        folder, _ = package
        with pytest.raises(IntegrityError, match="signed by no key"):
            verify(folder, Settings(project_root=tmp_path))

    def test_a_folder_that_is_not_there_is_refused(self, original):
        folder, config = original
        with pytest.raises(IntegrityError, match="is no folder"):
            verify(folder.with_name("9"), config)


class TestSeal:
    def test_a_version_is_sealed_once(self, original, tmp_path):
        folder, config = original
        write_bundle(tmp_path / "b")
        with pytest.raises(IntegrityError, match="exists already"):
            seal(read_bundle(tmp_path / "b", model="spills"), folder, config, version=1, card=CARD)

    @pytest.mark.parametrize("name", ["model.onnx", "signature.json", "training.json"])
    def test_a_bundle_without_one_of_its_files_is_refused(self, tmp_path, name):
        bundle = write_bundle(tmp_path / "b")
        (bundle / name).unlink()
        with pytest.raises(IntegrityError, match=name):
            read_bundle(bundle, model="spills")

    def test_a_bundle_of_another_model_is_refused(self, tmp_path):
        bundle = write_bundle(tmp_path / "b", model="leaks")
        with pytest.raises(IntegrityError, match="of the model 'leaks'"):
            read_bundle(bundle, model="spills")

    def test_a_failure_before_the_rename_leaves_nothing(self, tmp_path, monkeypatch):
        bundle = read_bundle(write_bundle(tmp_path / "b"), model="spills")
        config = Settings(project_root=tmp_path)
        open_signer(config.keys_path)

        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(Path, "rename", fail)
        with pytest.raises(OSError, match="disk full"):
            seal(bundle, tmp_path / "spills/1", config, version=1, card=CARD)
        assert list((tmp_path / "spills").iterdir()) == []

    def test_what_a_killed_sealing_left_is_cleared_away(self, tmp_path):
        (tmp_path / ".sealing-1-abc/native").mkdir(parents=True)
        (tmp_path / "1").mkdir()
        assert remove_unfinished(tmp_path) == 1
        assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_a_replica_that_verifies_loads_no_training_no_mlflow_and_no_ray():
    code = (
        "import sys, penstock.registry.package;"
        "print([m for m in ('mlflow','ray','torch','sklearn','penstock.training') if m in"
        " sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
