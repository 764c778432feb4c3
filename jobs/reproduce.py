"""Makes a run again from its record, and says whether the same came out.

python jobs/reproduce.py 0f3c…
"""

import argparse

from penstock.cluster.job import job


def main() -> None:
    """Parse, build, call, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="the id of a finished run")
    parser.add_argument("--anyway", action="store_true", help="with other code or packages too")
    parser.add_argument("--use-case", help="on whose budget it is")
    given = parser.parse_args()
    with job("reproduce", use_case=given.use_case) as running:
        # Here, not above: the settings keep MLflow from calling home, and come first.
        from penstock.training.reproduction import refuse_difference, reproduce

        verdict = reproduce(
            running.settings,
            given.run,
            request_id=running.request_id,
            anyway=given.anyway,
            progress=running.progress,
        )
        running.finish(verdict)
        refuse_difference(verdict)


if __name__ == "__main__":
    main()
