"""The Ray that a user's runs have: started as `penstock up` does, in a folder of its own."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_ray(num_cpus: int, **environment: str) -> Iterator[None]:
    """Be a driver of such a Ray, whose processes find the modules beside this one; then end it."""
    beside = [str(Path(__file__).resolve().parent), *os.environ.get("PYTHONPATH", "").split(":")]
    os.environ |= environment | {"PYTHONPATH": ":".join(folder for folder in beside if folder)}
    with tempfile.TemporaryDirectory() as root:
        os.environ["PENSTOCK_STORAGE__ROOT"] = root
        os.environ["PENSTOCK_RAY__NUM_LOGICAL_CPUS"] = str(num_cpus)
        from penstock.cluster import connection, local
        from penstock.settings import load_settings

        settings = load_settings()
        local.up(settings)
        try:
            connection.connect(settings)
            import ray

            yield
            ray.shutdown()
        finally:
            local.down(settings)
            sys.stdout.flush()
