"""The doctor's job: looks at the node that it runs on. Run as a module."""

import sys

from penstock.cluster.comparison import inspect
from penstock.cluster.job import job


def main() -> None:
    """Report what this node has."""
    with job("inspection") as run:
        run.finish(inspect(run.settings, sys.argv[1]))


if __name__ == "__main__":
    main()
