"""Build the feature tables of a use case: `python jobs/build_features.py card_fraud [--online]`."""

import argparse

from penstock.cluster.job import job
from penstock.features.build import build
from penstock.features.materialize import materialize


def main() -> None:
    """Parse, build, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case", help="a folder of the feature repo")
    parser.add_argument("--online", action="store_true", help="then bring the newest rows online")
    arguments = parser.parse_args()
    with job("build_features", use_case=arguments.use_case) as running:
        built = build(running.settings, arguments.use_case, running.progress)
        result = {"feature_tables": [table.model_dump(mode="json") for table in built]}
        if arguments.online:
            views = materialize(running.settings, arguments.use_case, progress=running.progress)
            result["views"] = [view.model_dump(mode="json") for view in views]
        running.finish(result)


if __name__ == "__main__":
    main()
