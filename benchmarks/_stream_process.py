"""The stream of benchmarks/stream.py: a process of its own, so that it can be killed."""

import signal
import sys
from datetime import timedelta
from types import FrameType


def main() -> None:
    from dataclasses import replace

    from penstock import logs
    from penstock.data.events.opening import choose_sources, open_source
    from penstock.features.stream_declarations import get_stream
    from penstock.features.streaming import run
    from penstock.settings import load_settings

    is_over = False

    def leave(_signal: int, _frame: FrameType | None) -> None:
        nonlocal is_over
        is_over = True

    signal.signal(signal.SIGTERM, leave)
    logs.configure()
    settings = load_settings()
    flush_interval = timedelta(seconds=float(sys.argv[1]))
    stream = replace(get_stream(settings, "card_fraud"), flush_interval=flush_interval)
    chosen, _ = choose_sources(settings, stream.sources, "kafka")
    report = run(
        settings,
        stream,
        lambda: open_source(settings, stream.table, chosen),
        should_stop=lambda: is_over,
        progress=lambda step, done, total=None, unit="": print(step, done, unit, flush=True),
    )
    print(report.model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
