"""Scores a table's rows with a model version, into a table of scores.

python jobs/score.py card_fraud --table card_fraud.transactions --out card_fraud.scores
"""

import argparse
from datetime import datetime

from penstock.cluster.job import job


def main() -> None:
    """Parse, build, call, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case")
    parser.add_argument("--table", required=True, help="<use case>.<table> with the rows")
    parser.add_argument("--out", required=True, help="<use case>.<table> for the scores")
    parser.add_argument("--start", type=datetime.fromisoformat, help="first event time")
    parser.add_argument("--end", type=datetime.fromisoformat, help="event time to stop before")
    parser.add_argument("--version", type=int, help="model version; the champion if left out")
    parser.add_argument("--table-version", type=int, help="the newest if left out")
    given = parser.parse_args()
    with job("score", use_case=given.use_case) as running:
        # Here, not above: the settings keep MLflow from calling home, and come first.
        from penstock.registry.versions import resolve
        from penstock.serving.batch import score_table
        from penstock.training.declarations import load_model

        settings = running.settings
        name = load_model(settings, given.use_case).name
        report = score_table(
            settings,
            model=resolve(settings, name, given.version),
            source=given.table,
            out=given.out,
            start=given.start,
            end=given.end,
            source_version=given.table_version,
            progress=running.progress,
        )
        running.finish(report)


if __name__ == "__main__":
    main()
