from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from deployed import sealed
from penstock import audit
from penstock.errors import (
    BusyError,
    GateRefusedError,
    NotFoundError,
)
from penstock.locks import exclusive
from penstock.serving import (
    deployments,
    rollout_files,
    way_back,
)
from penstock.serving.deploy import lock_path
from penstock.serving.deployments import Deployment
from stand_in_serve import BOTH, ONE, Serve
from waiting import wait_for


@contextmanager
def asked_while_held(serve: Serve) -> Iterator[Future[Deployment]]:
    """Another process holds the deployment, and somebody has asked it for the way back."""
    # The lock is let go of first; the pool waits for who waits for that.
    with ThreadPoolExecutor(1) as pool, exclusive(lock_path(serve.settings, "spills"), what="x"):
        asked = pool.submit(serve.roll_back)
        wait_for(lambda: rollout_files.asked_back(serve.settings, "spills"), timeout_s=5)
        yield asked


class TestRollBack:
    def test_each_leads_one_version_further_back(self, serve: Serve):
        serve.versions.append(sealed(serve.settings, 3))
        serve.deploy(2)
        serve.deploy(3)
        assert (serve.roll_back().version, serve.roll_back().version) == (2, 1)
        assert serve.stands.version == 1
        with pytest.raises(NotFoundError, match="nothing of spills served before version 1"):
            serve.roll_back()

    def test_the_reason_is_in_the_audit_log(self, serve: Serve):
        serve.deploy(2)
        serve.roll_back()
        found = [r for r in audit.records(serve.settings) if r.action == "deployment.rollback"]
        assert [(r.subject, r.facts["reason"]) for r in found] == [("spills 1", "alerts")]

    def test_after_a_rollout_it_leads_to_the_version_before(self, serve: Serve):
        serve.roll_out()
        assert serve.roll_back().version == 1

    def test_where_nothing_is_served_there_is_no_way_back(self, serve: Serve):
        deployments.deployment_path(serve.settings, "spills").unlink()
        with pytest.raises(NotFoundError, match="nothing of spills is served"):
            serve.roll_back()

    def test_a_rollout_that_was_left_ends_and_the_old_one_answers_alone(self, serve: Serve):
        serve.leave(serve.plan(), share_percent=5.0)
        back = serve.roll_back()
        assert (back.version, back.earlier) == (1, ())
        assert serve.calls == [ONE]
        assert (serve.rollout.phase, serve.rollout.share_percent) == ("over", 0)

    def test_one_under_way_is_asked_and_goes_back_by_itself(self, serve: Serve):
        asked: list[Future[Deployment]] = []
        with ThreadPoolExecutor(1) as pool:

            def ask_once() -> None:
                if not asked:
                    asked.append(pool.submit(serve.roll_back))

            serve.on_look = ask_once
            with pytest.raises(GateRefusedError, match="asked for: alerts"):
                serve.roll_out(hold_s=60)
            assert asked[0].result(5).version == 1
        assert serve.calls == [BOTH, ONE]

    def test_while_a_plain_deploy_is_under_way_it_is_refused(self, serve: Serve):
        with (
            exclusive(lock_path(serve.settings, "spills"), what="x"),
            pytest.raises(BusyError, match="spills is being deployed"),
        ):
            serve.roll_back()

    def test_where_the_asked_process_dies_it_goes_back_by_itself(self, serve: Serve):
        serve.leave(serve.plan(), share_percent=5.0)
        with asked_while_held(serve) as asked:
            pass
        assert asked.result(5).version == 1
        assert serve.calls == [ONE]
        assert serve.rollout.is_over

    def test_where_it_asked_too_late_it_is_told_so(self, serve: Serve):
        left = serve.leave(serve.plan(), phase="finishing")
        with asked_while_held(serve) as asked:
            over = left.model_copy(update={"phase": "over", "outcome": "served"})
            rollout_files.write(serve.settings, over)
        with pytest.raises(BusyError, match="version 2 of spills served everything by then"):
            asked.result(5)
        assert serve.calls == []

    def test_it_does_not_wait_forever(self, serve: Serve, monkeypatch):
        monkeypatch.setattr(way_back, "_WAIT_FOR_BACK_S", 0.01)
        serve.leave(serve.plan())
        with asked_while_held(serve) as asked, pytest.raises(BusyError, match="does not end"):
            asked.result(5)
