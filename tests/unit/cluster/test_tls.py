from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certificates import write_certificate
from penstock.cluster import tls
from penstock.errors import SettingsError
from penstock.settings import Settings


def asking_for(certificate: Path, key: Path, host: str = "127.0.0.1") -> Settings:
    files = {"certificate": str(certificate), "key": str(key)}
    return Settings(
        serving={
            "host": host,
            "tls": files,
            "require_key": True,
            "public_names": ("models.example",),
        }
    )


class TestCheck:
    def test_a_pair_that_fits_is_linked_where_haproxy_looks(self, tmp_path: Path):
        certificate, key = write_certificate(tmp_path)
        for _ in range(2):
            made = tls.link(asking_for(certificate, key), tmp_path)
        assert made.readlink() == certificate
        assert Path(f"{made}.key").readlink() == key

    def test_another_key_is_refused(self, tmp_path: Path):
        (tmp_path / "other").mkdir()
        certificate, _ = write_certificate(tmp_path)
        _, key = write_certificate(tmp_path / "other")
        with pytest.raises(SettingsError, match="is not that of the certificate"):
            tls.check(asking_for(certificate, key))

    @pytest.mark.parametrize("days", [-10, 10])
    def test_a_certificate_out_of_its_time_is_refused(self, tmp_path: Path, days: int):
        start = datetime.now(UTC) + timedelta(days=days)
        certificate, key = write_certificate(tmp_path, start=start)
        with pytest.raises(SettingsError, match="is valid from"):
            tls.check(asking_for(certificate, key))

    def test_a_key_that_everybody_can_read_is_refused(self, tmp_path: Path):
        certificate, key = write_certificate(tmp_path)
        key.chmod(0o644)
        with pytest.raises(SettingsError, match="read by everybody"):
            tls.check(asking_for(certificate, key))

    @pytest.mark.parametrize("what", ["certificate", "key"])
    @pytest.mark.parametrize("content", [None, b"", b"no PEM"])
    def test_what_is_missing_or_no_pem_is_refused(self, tmp_path: Path, what, content):
        files = dict(zip(("certificate", "key"), write_certificate(tmp_path), strict=True))
        files[what].unlink()
        if content is not None:
            files[what].write_bytes(content)
            files[what].chmod(0o600)
        with pytest.raises(SettingsError, match=f"the {what} .* can't be read"):
            tls.check(asking_for(files["certificate"], files["key"]))


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("localhost", "127.0.0.1:8443"),
        ("10.0.0.5", "10.0.0.5:8443"),
        ("::", "[::]:8443"),
    ],
)
def test_its_address_is_written_as_haproxy_takes_it(tmp_path: Path, host: str, address: str):
    assert tls.address(asking_for(*write_certificate(tmp_path), host)) == address


def test_without_a_certificate_it_has_none():
    assert tls.address(Settings()) is None
