"""Bring the newest feature rows online: `python jobs/materialize.py card_fraud`."""

import argparse
from datetime import datetime

from penstock.cluster.job import job
from penstock.features.materialize import materialize


def main() -> None:
    """Parse, materialize, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case", help="a folder of the feature repo")
    parser.add_argument(
        "--until", type=datetime.fromisoformat, help="leave out rows after this time (UTC)"
    )
    arguments = parser.parse_args()
    with job("materialize", use_case=arguments.use_case) as running:
        views = materialize(
            running.settings, arguments.use_case, until=arguments.until, progress=running.progress
        )
        running.finish({"views": [view.model_dump(mode="json") for view in views]})


if __name__ == "__main__":
    main()
