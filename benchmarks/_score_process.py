"""The one-core scoring of benchmarks/score.py: no Ray, one thread of polars, pinned to a core."""

import sys
import time


def main() -> None:
    from penstock.registry.versions import resolve
    from penstock.serving.batch import score_table
    from penstock.settings import load_settings

    table, out = sys.argv[1:]
    settings = load_settings()
    model = resolve(settings, "card_fraud", None)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    report = score_table(settings, model=model, source=table, out=out)
    took_s, took_cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    print(report.num_rows, took_s, took_cpu_s)


if __name__ == "__main__":
    main()
