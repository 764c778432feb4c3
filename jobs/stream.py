"""Read events into a table and online, until stopped: `python jobs/stream.py card_fraud`."""

import argparse
import signal

from penstock.cluster.job import job
from penstock.data.events import Push
from penstock.data.events.opening import choose_sources, open_source
from penstock.features.stream_declarations import get_stream


def main() -> None:
    """Parse, build, stream, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("use_case", help="a folder of the feature repo")
    parser.add_argument("--table", help="<use case>.<table>, where there are several streams")
    parser.add_argument("--source", help="push, kafka or a JSON Lines file; all that are declared")
    parser.add_argument("--until-idle", type=float, help="end after so many seconds of nothing")
    parser.add_argument("--rebuild", action="store_true", help="make states and rows again first")
    given = parser.parse_args()
    with job("stream", use_case=given.use_case) as running:
        # Here, not above: Feast takes seconds, and a wrong argument is told before.
        from penstock.features.streaming import run
        from penstock.serving import server

        settings = running.settings
        stream = get_stream(settings, given.use_case, given.table)
        chosen, left_out = choose_sources(settings, stream.sources, given.source)
        for why in left_out:
            print(f"left out: {why}")
        if any(isinstance(source, Push) for source in chosen):
            # The route for pushes knows the tables that were declared when it was started.
            server.start(settings)
        stops: list[int] = []
        # To stop is how a stream ends: what was read is brought into the table first.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, _frame: stops.append(number))
        report = run(
            settings,
            stream,
            lambda: open_source(settings, stream.table, chosen),
            until_idle_s=given.until_idle,
            should_stop=lambda: bool(stops),
            rebuild=given.rebuild,
            progress=running.progress,
        )
        running.finish(report)


if __name__ == "__main__":
    main()
