"""Small worlds of labels and feature rows, and what a brute force over all rows finds in them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from hypothesis import strategies as st

from penstock.features.point_in_time import ViewSide

START = datetime(2024, 2, 28, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")


def moment(second: int | None) -> datetime | None:
    return None if second is None else START + timedelta(seconds=second)


def labels_of(rows: list[tuple[Any, Any, Any]]) -> pl.DataFrame:
    """Rows of (who, shop, seconds after START)."""
    return pl.DataFrame(
        [(w, s, moment(t)) for w, s, t in rows],
        schema={"who": pl.String, "shop": pl.Int64, "at": TIME},
        orient="row",
    )


def source_of(rows: list[tuple[Any, Any, Any, Any]]) -> pl.DataFrame:
    """Rows of (who, shop, event second, created second), each with its number as the value."""
    return pl.DataFrame(
        [(w, s, moment(t), moment(c), n) for n, (w, s, t, c) in enumerate(rows)],
        schema={"who": pl.String, "shop": pl.Int64, "when": TIME, "made": TIME, "v": pl.Int64},
        orient="row",
    )


def side(rows: pl.DataFrame, *keys: str, name: str = "v", **more: Any) -> ViewSide:
    given: dict[str, Any] = {
        "name": f"view_{name}",
        "frame": rows.lazy(),
        "join_keys": keys,
        "source_keys": keys,
        "event_time": "when",
        "features": {name: "v"},
    }
    return ViewSide(**{**given, **more})


def brute_force(
    labels: list[tuple[Any, Any, Any]],
    rows: list[tuple[Any, Any, Any, Any]],
    keys: tuple[str, ...],
    *,
    ttl: int | None,
    created: bool,
    cut_off: bool,
) -> list[int | None]:
    """For each label the number of the row that wins, by the rules alone."""
    out: list[int | None] = []
    for label in labels:
        ours = dict(zip(("who", "shop", "at"), label, strict=True))
        best: tuple[Any, ...] | None = None
        for number, (who, shop, event, made) in enumerate(rows):
            theirs = {"who": who, "shop": shop}
            at = ours["at"]
            if at is None or event is None or event > at:
                continue
            if any(ours[k] is None or ours[k] != theirs[k] for k in keys):
                continue
            if ttl and event < at - ttl:
                continue
            if cut_off and created and (made is None or made > at):
                continue
            order = -1 if made is None or not created else made
            best = max(best or (-1,), (event, order, number))
        out.append(best[2] if best else None)
    return out


entities = st.sampled_from(["a", "b", None])
shops = st.sampled_from([1, 2, None])
seconds = st.one_of(st.integers(0, 12), st.none())
label_rows = st.lists(st.tuples(entities, shops, seconds), max_size=20)
source_rows = st.lists(st.tuples(entities, shops, seconds, seconds), max_size=20)
key_sets = st.sampled_from([("who",), ("shop",), ("who", "shop"), ()])

# Views of several keys, each with its rows, TTL in seconds and whether it has created times.
views = st.lists(
    st.tuples(source_rows, key_sets, st.sampled_from([None, 0, 3]), st.booleans()),
    min_size=1,
    max_size=3,
)


def sides_of(world: list[tuple[Any, ...]]) -> list[ViewSide]:
    """The views as the join sees them; the n-th gives the feature `v<n>`."""
    return [
        side(
            source_of(rows),
            *keys,
            name=f"v{n}",
            ttl=None if ttl is None else timedelta(seconds=ttl),
            created_time="made" if created else None,
        )
        for n, (rows, keys, ttl, created) in enumerate(world)
    ]
