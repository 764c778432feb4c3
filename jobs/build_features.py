"""Build the feature tables of a use case: `python jobs/build_features.py card_fraud`."""

import argparse

from penstock.cluster.job import job
from penstock.features.build import build


def main() -> None:
    """Parse, build, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case", help="a folder of the feature repo")
    arguments = parser.parse_args()
    with job("build_features") as running:
        built = build(running.settings, arguments.use_case, running.progress)
        running.finish({"feature_tables": [table.model_dump(mode="json") for table in built]})


if __name__ == "__main__":
    main()
