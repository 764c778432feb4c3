"""Ray job: the truth about predictions. `python jobs/feedback.py ingest card_fraud FILE`, `show`"""

import argparse
from pathlib import Path

from penstock.cluster.job import job
from penstock.data.source_kinds import FileSource
from penstock.monitoring.truth import summarize
from penstock.serving.feedback_files import FeedbackColumns, ingest_file
from penstock.serving.feedback_target import find_target
from penstock.training.declarations import load_model


def main() -> None:
    """Parse, build, call, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="collect, and count what is known")
    ingest = commands.add_parser("ingest", help="bring a file in")
    for command in (show, ingest):
        command.add_argument("use_case", help="a folder of the feature repo")
    ingest.add_argument("file", type=Path, help="Parquet, CSV or JSON Lines")
    ingest.add_argument("--truth", default="truth", help="column")
    ingest.add_argument("--prediction-id", default="prediction_id", help="column")
    ingest.add_argument("--entity", action="append", default=[], help="column and field")
    ingest.add_argument("--event-time", default="event_time", help="column")
    ingest.add_argument("--known-at", help="column")
    given = parser.parse_args()
    with job("feedback", use_case=given.use_case) as running:
        model = load_model(running.settings, given.use_case)
        if given.command == "show":
            delay = model.split.label_delay
            running.finish(
                summarize(
                    running.settings, given.use_case, label_delay=delay, progress=running.progress
                )
            )
            return
        columns = FeedbackColumns(
            truth=given.truth,
            prediction_id=given.prediction_id,
            entity=tuple(given.entity),
            event_time=given.event_time,
            known_at=given.known_at,
        )
        target = find_target(running.settings, model.name)
        source = FileSource(path=given.file.absolute())
        running.finish(
            ingest_file(running.settings, target, source, columns, progress=running.progress)
        )


if __name__ == "__main__":
    main()
