"""Accepted async requests, durable: what was answered with 202 is in here until its result is old.

It lives in SQLite, or on the server of Feast's registry. A request's rows were cut into chunks when
it was accepted; each chunk is scored by the ordinary predict path, and its answer is kept once. So
whoever goes on after a kill goes on at the first chunk without an answer.
"""

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy
from sqlalchemy.dialects import postgresql, sqlite

from penstock.data.durable_database import DurableDatabase
from penstock.serving.task_limits import MAX_BYTES, MAX_KEPT, MAX_WAITING, RESULT_LIFE_S
from penstock.serving.task_policy import BeginAgain, Fail, Outcome, Wait
from penstock.serving.task_tables import (
    DONE,
    FAILED,
    QUEUED,
    RUNNING,
    Full,
    NewTask,
    TaskState,
    Turn,
)
from penstock.serving.task_tables import answers as _answers
from penstock.serving.task_tables import chunks as _chunks
from penstock.serving.task_tables import metadata as _metadata
from penstock.serving.task_tables import tasks as _tasks
from penstock.settings import Settings

_OPEN = (QUEUED, RUNNING)


class TaskStore:
    """Takes tasks, gives them out in turns, and keeps their answers."""

    def __init__(
        self,
        url: str,
        *,
        max_waiting: int = MAX_WAITING,
        max_kept: int = MAX_KEPT,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Open the store; its tables are made where they are absent.

        Args:
            url: SQLAlchemy's, of a SQLite file or a Postgres server.
            max_waiting: when so many tasks are not ended, no further one is taken.
            max_kept: the same for all tasks, those with a result among them.
            max_bytes: the same for what they take, rows and results.
        """
        self._max_waiting, self._max_kept, self._max_bytes = max_waiting, max_kept, max_bytes
        self._database = DurableDatabase(url, _metadata, what="async requests")
        self._insert: Any = sqlite.insert if self._database.is_sqlite else postgresql.insert

    @classmethod
    def of(cls, settings: Settings) -> "TaskStore":
        """Open the store that the settings name."""
        return cls(settings.task_store_url)

    def accept(self, new: NewTask) -> TaskState | Full:
        """Write a task; it is on disk when this returns. One that is known is left as it is."""
        num_bytes = sum(map(len, new.chunks))
        row = {
            "model": new.model,
            "task_id": new.task_id,
            "asked_version": new.asked_version,
            "status": QUEUED,
            "num_rows": new.num_rows,
            "rows_per_chunk": new.rows_per_chunk,
            "num_chunks": len(new.chunks),
            "num_chunks_done": 0,
            "num_bytes": num_bytes,
            "turn": _next_turn(),
            "num_attempts": 0,
            "not_before_s": 0.0,
            "created_at_s": new.created_at_s,
            "deadline_s": new.deadline_s,
        }
        with self._database.reading() as connection, connection.begin() as writing:
            # The write comes first: with it SQLite takes the file's lock, so the counts are true.
            added = connection.execute(
                self._insert(_tasks).values(row).on_conflict_do_nothing().returning(_tasks.c.turn)
            ).one_or_none()
            if added is not None:
                full = self._why_full(connection)
                if full is not None:
                    writing.rollback()
                    return full
                connection.execute(_chunks.insert(), _numbered(new, new.chunks, "body"))
            return _state(_row_of(connection, new.model, new.task_id))

    def _why_full(self, connection: Any) -> Full | None:
        count, total = sqlalchemy.func.count(), sqlalchemy.func.sum(_tasks.c.num_bytes)
        by_status = connection.execute(
            sqlalchemy.select(_tasks.c.status, count, total).group_by(_tasks.c.status)
        ).all()
        num_waiting = sum(number for status, number, _ in by_status if status in _OPEN)
        num_kept = sum(number for _, number, _ in by_status)
        num_bytes = sum(total for _, _, total in by_status)
        if num_waiting > self._max_waiting:
            return Full(f"{num_waiting - 1:,} async requests wait")
        if num_kept > self._max_kept:
            return Full(f"{num_kept - 1:,} async requests and results are kept")
        # An empty store takes any task: one that is alone too large would never get in.
        if num_bytes > self._max_bytes and num_kept > 1:
            return Full(f"async requests and results would take {num_bytes:,} bytes")
        return None

    def find(self, model: str, task_id: str) -> TaskState | None:
        """Say how a task stands; None: there is none, or it is forgotten."""
        with self._database.reading() as connection:
            row = _row_of(connection, model, task_id)
            return None if row is None else _state(row)

    def answers(self, model: str, task_id: str) -> list[bytes]:
        """Give what was kept of a task, in order: each a chunk's predictions without brackets."""
        query = sqlalchemy.select(_answers.c.answer).where(_is(_answers, model, task_id))
        with self._database.reading() as connection:
            return [bytes(row.answer) for row in connection.execute(query.order_by("number"))]

    def remove(self, model: str, task_id: str) -> TaskState | None:
        """Forget a task that nobody works on; give how it stood, None where there is none."""
        with self._database.writing() as connection:
            gone = connection.execute(
                _tasks.delete()
                .where(_is(_tasks, model, task_id), _tasks.c.status != RUNNING)
                .returning(*_tasks.c)
            ).one_or_none()
            if gone is None:
                gone = _row_of(connection, model, task_id)
                return None if gone is None else _state(gone)
            for table in (_chunks, _answers):
                connection.execute(table.delete().where(_is(table, model, task_id)))
            return _state(gone)

    def take_turn(
        self,
        model: str,
        *,
        now_s: float,
        max_chunks: int,
        but: Collection[str] = (),
        may_be_suspect: bool = True,
    ) -> Turn | None:
        """Give out the next chunks of the task whose turn was longest ago; None: none is ready.

        The attempt is counted before it begins, so that one that kills its worker is counted too.

        Args:
            model: whose tasks.
            now_s: the time.
            max_chunks: of a task that nothing happened to; others get one chunk at a time.
            but: tasks that are in hand.
            may_be_suspect: whether it may be one whose last attempt did not end well.
        """
        is_ready = (
            (_tasks.c.model == model)
            & _tasks.c.status.in_(_OPEN)
            & (_tasks.c.not_before_s <= now_s)
            & (_tasks.c.deadline_s > now_s)
            & _tasks.c.task_id.not_in(list(but))
        )
        if not may_be_suspect:
            is_ready &= _tasks.c.num_attempts == 0
        oldest = (
            sqlalchemy.select(_tasks.c.task_id)
            .where(is_ready)
            .order_by(_tasks.c.turn, _tasks.c.task_id)
            .limit(1)
        )
        with self._database.writing() as connection:
            # Asked first without a write: most of the time there is nothing to do.
            task_id = connection.execute(oldest).scalar_one_or_none()
            if task_id is None:
                return None
            task = connection.execute(
                _tasks.update()
                .where(_is(_tasks, model, task_id), _tasks.c.status.in_(_OPEN))
                .values(status=RUNNING, turn=_next_turn(), num_attempts=_tasks.c.num_attempts + 1)
                .returning(*_tasks.c)
            ).one_or_none()
            if task is None:
                return None
            first = task.num_chunks_done
            end = first + (max_chunks if task.num_attempts == 1 else 1)
            bodies = connection.execute(
                sqlalchemy.select(_chunks.c.body)
                .where(_is(_chunks, model, task_id))
                .where(_chunks.c.number >= first, _chunks.c.number < end)
                .order_by(_chunks.c.number)
            )
            return Turn(
                model=model,
                task_id=task_id,
                version=task.asked_version if task.version is None else task.version,
                is_insisted=task.asked_version is not None,
                num_attempts=task.num_attempts,
                num_rows=task.num_rows,
                rows_per_chunk=task.rows_per_chunk,
                first=first,
                bodies=[bytes(row.body) for row in bodies],
            )

    def settle(
        self, turns: Sequence[tuple[Turn, int | None, Sequence[bytes], Outcome]], *, now_s: float
    ) -> None:
        """Keep what came of turns, in one commit: answers, by which version, and how it goes on."""
        with self._database.writing() as connection:
            for turn, version, answers, outcome in turns:
                self._settle(connection, turn, version, answers, outcome, now_s)

    def _settle(
        self,
        connection: Any,
        turn: Turn,
        version: int | None,
        answers: Sequence[bytes],
        outcome: Outcome,
        now_s: float,
    ) -> None:
        of_task = _is(_tasks, turn.model, turn.task_id)
        # Who kept the answers of these chunks before us, and went on, is left as it is.
        still_ours = of_task & (_tasks.c.num_chunks_done == turn.first)
        done = turn.first + len(answers)
        tried = 1 if answers else turn.num_attempts
        is_counted = isinstance(outcome, Wait) and outcome.is_counted
        values: dict[str, Any] = {
            "version": version,
            "num_chunks_done": done,
            "num_attempts": tried if is_counted else 0 if answers else tried - 1,
            "code": None,
            "reason": None,
        }
        if isinstance(outcome, Wait):
            values |= {"not_before_s": now_s + outcome.wait_s, "reason": outcome.reason[:1000]}
        task = connection.execute(
            _tasks.update()
            .where(still_ours, _tasks.c.status == RUNNING)
            .values(values)
            .returning(_tasks.c.num_chunks)
        ).one_or_none()
        if task is None:
            return
        if answers:
            connection.execute(
                self._insert(_answers).on_conflict_do_nothing(),
                _numbered(turn, answers, "answer", first=turn.first),
            )
        if isinstance(outcome, BeginAgain):
            connection.execute(_answers.delete().where(_is(_answers, turn.model, turn.task_id)))
            anew = {"version": None, "num_chunks_done": 0, "reason": outcome.reason[:1000]}
            connection.execute(_tasks.update().where(of_task).values(anew))
        elif isinstance(outcome, Fail):
            _end(connection, turn.model, turn.task_id, now_s, outcome)
        elif done == task.num_chunks:
            _end(connection, turn.model, turn.task_id, now_s, None)

    def sweep(self, *, now_s: float, result_life_s: float = RESULT_LIFE_S) -> None:
        """Fail what is past its deadline, and forget what ended long ago."""
        columns = _tasks.c.model, _tasks.c.task_id, _tasks.c.reason
        is_late = _tasks.c.status.in_(_OPEN) & (_tasks.c.deadline_s <= now_s)
        is_old = _tasks.c.ended_at_s <= now_s - result_life_s
        with self._database.writing() as connection:
            for model, task_id, reason in connection.execute(
                sqlalchemy.select(*columns).where(is_late)
            ).all():
                last = f"; it waited for this: {reason}" if reason else ""
                late = Fail("deadline_exceeded", f"it was not done in time{last}")
                _end(connection, model, task_id, now_s, late)
            for model, task_id, _ in connection.execute(
                sqlalchemy.select(*columns).where(is_old)
            ).all():
                for table in (_tasks, _chunks, _answers):
                    connection.execute(table.delete().where(_is(table, model, task_id)))

    def close(self) -> None:
        """Close the connections."""
        self._database.close()


def _is(table: Any, model: str, task_id: str) -> Any:
    return (table.c.model == model) & (table.c.task_id == task_id)


def _next_turn() -> Any:
    other = _tasks.alias()
    newest = sqlalchemy.func.coalesce(sqlalchemy.func.max(other.c.turn), 0)
    return sqlalchemy.select(newest + 1).scalar_subquery()


def _row_of(connection: Any, model: str, task_id: str) -> Any:
    query = sqlalchemy.select(_tasks).where(_is(_tasks, model, task_id))
    return connection.execute(query).one_or_none()


def _numbered(
    of: NewTask | Turn, parts: Sequence[bytes], column: str, *, first: int = 0
) -> list[dict[str, Any]]:
    return [
        {"model": of.model, "task_id": of.task_id, "number": number, column: part}
        for number, part in enumerate(parts, first)
    ]


def _state(row: Any) -> TaskState:
    return TaskState(
        model=row.model,
        task_id=row.task_id,
        status=row.status,
        version=row.version,
        code=row.code,
        reason=row.reason,
        num_rows=row.num_rows,
        num_rows_done=min(row.num_chunks_done * row.rows_per_chunk, row.num_rows),
        created_at_s=row.created_at_s,
        deadline_s=row.deadline_s,
        ended_at_s=row.ended_at_s,
    )


def _end(connection: Any, model: str, task_id: str, now_s: float, failed: Fail | None) -> None:
    """Mark a task as ended; its rows go, and of a failed one what was answered too."""
    connection.execute(_chunks.delete().where(_is(_chunks, model, task_id)))
    values: dict[str, Any] = {"ended_at_s": now_s}
    if failed is None:
        length = sqlalchemy.func.sum(sqlalchemy.func.length(_answers.c.answer))
        kept = sqlalchemy.select(length).where(_is(_answers, model, task_id)).scalar_subquery()
        values |= {"status": DONE, "num_bytes": kept}
    else:
        connection.execute(_answers.delete().where(_is(_answers, model, task_id)))
        code, reason = failed.code[:100], failed.reason[:1000]
        values |= {"status": FAILED, "num_bytes": 0, "code": code, "reason": reason}
    connection.execute(_tasks.update().where(_is(_tasks, model, task_id)).values(values))
