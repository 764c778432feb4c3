"""How accepted async requests lie in a database, and the records that its callers see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy
from sqlalchemy import BigInteger, Column, Float, LargeBinary, String

QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"

metadata = sqlalchemy.MetaData()
tasks = sqlalchemy.Table(
    "penstock_tasks",
    metadata,
    Column("model", String(300), primary_key=True),
    Column("task_id", String(32), primary_key=True),
    Column("asked_version", BigInteger),
    Column("version", BigInteger),
    Column("status", String(10), nullable=False),
    Column("code", String(100)),
    Column("reason", String(1000)),
    Column("num_rows", BigInteger, nullable=False),
    Column("rows_per_chunk", BigInteger, nullable=False),
    Column("num_chunks", BigInteger, nullable=False),
    Column("num_chunks_done", BigInteger, nullable=False),
    Column("num_bytes", BigInteger, nullable=False),
    # Whose turn was longest ago is next.
    Column("turn", BigInteger, nullable=False),
    Column("num_attempts", BigInteger, nullable=False),
    Column("not_before_s", Float, nullable=False),
    Column("created_at_s", Float, nullable=False),
    Column("deadline_s", Float, nullable=False),
    Column("ended_at_s", Float),
    sqlalchemy.Index("penstock_tasks_in_order", "model", "status", "turn"),
    sqlalchemy.Index("penstock_tasks_by_turn", "turn"),
    sqlalchemy.Index("penstock_tasks_by_status", "status", "num_bytes"),
)
chunks = sqlalchemy.Table(
    "penstock_task_chunks",
    metadata,
    Column("model", String(300), primary_key=True),
    Column("task_id", String(32), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("body", LargeBinary, nullable=False),
)
answers = sqlalchemy.Table(
    "penstock_task_answers",
    metadata,
    Column("model", String(300), primary_key=True),
    Column("task_id", String(32), primary_key=True),
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("answer", LargeBinary, nullable=False),
)


@dataclass(frozen=True, kw_only=True)
class NewTask:
    """An async request, checked and cut."""

    model: str
    task_id: str
    asked_version: int | None
    num_rows: int
    rows_per_chunk: int
    chunks: Sequence[bytes]
    """Bodies of predict requests; all but the last have `rows_per_chunk` rows."""
    created_at_s: float
    deadline_s: float


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """How a task stands."""

    model: str
    task_id: str
    status: str
    version: int | None
    """Which answers; None: none has answered yet."""
    code: str | None
    reason: str | None
    """Why it failed, or what it waits for."""
    num_rows: int
    num_rows_done: int
    created_at_s: float
    deadline_s: float
    ended_at_s: float | None


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The chunks of one task that are to be scored now."""

    model: str
    task_id: str
    version: int | None
    """Which must answer; None: whichever does."""
    is_insisted: bool
    """Whether the caller named that version."""
    num_attempts: int
    """How often the first chunk was tried, this time among them."""
    num_rows: int
    rows_per_chunk: int
    first: int
    """The number of the first chunk."""
    bodies: Sequence[bytes]


class Full(NamedTuple):
    """Why a task was not taken."""

    what: str
