"""Ray job: bring sources into a table. `python jobs/ingest.py card_fraud.transactions FILES…`"""

import argparse
from pathlib import Path

from penstock.cluster.job import job
from penstock.data.contracts import get_table
from penstock.data.ingest import ingest
from penstock.data.source_kinds import FileSource, Source, take_query
from penstock.errors import DataError


def main() -> None:
    """Parse, build, call, close."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", help="<use case>.<table>")
    parser.add_argument("files", nargs="*", type=Path, help="Parquet, CSV or JSON Lines files")
    parser.add_argument(
        "--query-file", type=Path, help="JSON with url and query of an SQL source; deleted"
    )
    given = parser.parse_args()
    with job("ingest", use_case=given.table.partition(".")[0]) as running:
        sources: list[Source] = [FileSource(path=path.absolute()) for path in given.files]
        if given.query_file:
            sources.append(take_query(given.query_file))
        table = get_table(running.settings, given.table)
        report = ingest(running.settings, table, sources, running.progress)
        running.finish(report)
        if report.refused:
            raise DataError(
                f"{len(report.refused)} of {len(report.sources)} sources refused: "
                + "; ".join(source.reason or source.source for source in report.refused),
                next_step="mend and ingest them again; what was taken is not taken twice",
            )


if __name__ == "__main__":
    main()
