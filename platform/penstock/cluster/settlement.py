"""Ends the records of jobs that were killed, by what Ray says of them."""

from penstock.cluster import connection, ledger
from penstock.errors import ClusterError
from penstock.settings import Settings

_TIMEOUT_S = 10.0


def settle_open_records(settings: Settings) -> int:
    """End what ended without a word, and say how many that were.

    Where Ray is up and does not answer, nothing is known, and nothing is changed.
    """
    costs = ledger.read_all(settings)
    if not any(cost.state == "running" for cost in costs):
        return 0
    try:
        target = connection.endpoint(settings)
    except ClusterError:
        statuses = None
    else:
        try:
            jobs = target.get("/api/jobs/", timeout_s=_TIMEOUT_S)
        except ClusterError:
            return 0
        statuses = {job["submission_id"]: str(job["status"]) for job in jobs}
    settled = ledger.settle(costs, statuses)
    for cost in settled:
        ledger.write(settings, cost)
    return len(settled)
