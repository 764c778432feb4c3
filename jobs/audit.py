"""Holds served features against what training would see: `python jobs/audit.py card_fraud`."""

import argparse
from datetime import datetime

from penstock.cluster.job import job
from penstock.monitoring.skew_audit import audit


def main() -> None:
    """Parse, audit, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case", help="a folder of the feature repo")
    parser.add_argument("--since", type=datetime.fromisoformat, help="served from then on (UTC)")
    parser.add_argument("--until", type=datetime.fromisoformat, help="served before then (UTC)")
    given = parser.parse_args()
    with job("audit", use_case=given.use_case) as running:
        report = audit(
            running.settings,
            given.use_case,
            since=given.since,
            until=given.until,
            progress=running.progress,
        )
        running.finish(report)


if __name__ == "__main__":
    main()
