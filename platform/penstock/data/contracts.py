"""A raw table's contract: its columns, keys and event time, declared beside the use case."""
