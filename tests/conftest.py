"""Fixtures for every test: one project and one Ray for the whole run, and the servers."""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from penstock.cluster import local
from penstock.cluster.local import LocalCluster
from penstock.settings import Settings
from projects import Completed, Project
from servers import postgres, prometheus_programs, redis_server

if TYPE_CHECKING:
    from small_model import SmallRun

_SETTINGS = pytest.StashKey[Settings]()
__all__ = ["penstock", "postgres", "project", "prometheus_programs", "ray_cluster", "redis_server"]


def pytest_configure() -> None:
    """Let no test see the settings or the Ray of the developer who runs it."""
    for name in list(os.environ):
        if name.startswith(("PENSTOCK_", "RAY_")):
            del os.environ[name]
    # A call that was not meant to reach Ray fails, where it would start a second one by itself.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"


# As each is collected: pytest-xdist reads the groups before any hook that looks at all of them.
def pytest_itemcollected(item: pytest.Item) -> None:
    """Where the tests run in several processes: all that needs the one Ray in one, else by file."""
    item.add_marker(pytest.mark.xdist_group("ray" if _needs_ray(item) else item.location[0]))


def _needs_ray(item: pytest.Item) -> bool:
    return "ray_cluster" in getattr(item, "fixturenames", ())


# After the teardown of the fixtures.
@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Take the Ray down behind the last test of its group: idle, it is a sixth of a core."""
    # Only where one process has all tests that need it, one behind the other.
    is_in_group = hasattr(item.config, "workerinput") and item.config.option.loadgroup
    if is_in_group and nextitem is not None and _needs_ray(item) and not _needs_ray(nextitem):
        local.down(item.session.stash[_SETTINGS])


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse a pytest-xdist that has not read the groups: each process would start a Ray."""
    is_grouped = all("@" in item.nodeid for item in session.items)
    if getattr(session.config.option, "loadgroup", False) and not is_grouped:
        raise pytest.UsageError("this pytest-xdist does not group tests under this pytest")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """This repository with a storage root of the test run's own; nothing runs yet."""
    return Project(storage=tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="session")
def ray_cluster(project: Project, request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """The one Ray of the test run, taken down at its end whatever happened."""
    request.session.stash[_SETTINGS] = project.settings
    try:
        project.must("up")
        cluster = local.current(project.settings)
        assert cluster is not None
        yield cluster
    finally:
        local.down(project.settings)


@pytest.fixture(scope="session")
def small_run(
    project: Project, ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> "tuple[Settings, SmallRun]":
    """A storage of its own on that Ray, with features online and a trained run.

    Who takes it deploys models of names that no other one has.
    """
    from small_model import prepare_on, train_small

    mine = prepare_on(project, tmp_path_factory.mktemp("small"))
    return mine, train_small(mine, "run-1")


@pytest.fixture(scope="module")
def connected(project: Project, ray_cluster: LocalCluster) -> Iterator[None]:
    """The test process as a driver of the test run's Ray."""
    import ray

    from penstock.cluster import connection

    connection.connect(project.settings)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def penstock(project: Project) -> Callable[..., Completed]:
    """Run `penstock …` on the session's project; gives exit code, stdout and stderr."""
    return project.run
