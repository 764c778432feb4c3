"""What a run ran on."""

from penstock.training import environment


class TestHardware:
    def test_it_names_the_processor_its_cores_and_the_memory(self):
        found = environment.hardware()
        assert found.cpu_model
        assert found.num_cores >= 1
        assert found.memory_bytes > 1 << 28


class TestPackages:
    def test_they_hold_python_and_what_is_installed(self):
        found = environment.packages()
        assert found["python"].startswith("3.")
        assert "polars" in found

    def test_the_digest_changes_with_any_version(self):
        versions = {"python": "3.11.1", "polars": "2.1.0"}
        assert environment.digest(versions) == environment.digest(dict(reversed(versions.items())))
        assert environment.digest(versions) != environment.digest(versions | {"polars": "2.1.1"})
