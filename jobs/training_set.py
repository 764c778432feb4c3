"""Build a training set: `python jobs/training_set.py card_fraud [--start …] [--table …]`."""

import argparse
from datetime import UTC, datetime

from penstock.cluster.job import job
from penstock.features.training_set import build_training_set
from penstock.features.training_set_export import to_table
from penstock.training.declarations import load_model


def _utc(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def main() -> None:
    """Parse, build, write, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case", help="a folder of the feature repo")
    parser.add_argument("--service", help="the feature service; the model's by default")
    parser.add_argument("--start", type=_utc, help="first event time (UTC)")
    parser.add_argument("--end", type=_utc, help="the time to stop before (UTC)")
    parser.add_argument("--table", help="write the rows to this table too")
    arguments = parser.parse_args()
    with job("training_set", use_case=arguments.use_case) as running:
        model = load_model(running.settings, arguments.use_case)
        made = build_training_set(
            running.settings,
            use_case=arguments.use_case,
            service=arguments.service or model.feature_service,
            label_table=model.label_table,
            label=model.label,
            start=arguments.start or model.split.train_start_utc,
            end=arguments.end or model.split.test_end_utc,
            extra_columns=model.group_columns,
            progress=running.progress,
        )
        result = made.model_dump(mode="json")
        if arguments.table:
            written = to_table(running.settings, made, arguments.table, running.progress)
            result["table"] = written.model_dump(mode="json")
        running.finish(result)


if __name__ == "__main__":
    main()
