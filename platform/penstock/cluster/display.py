"""Shows a job's progress on stderr: live bars on a terminal, one line a step elsewhere."""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from penstock.cluster.markers import ProgressMarker, TableMarker


class _Amount(ProgressColumn):
    """`12,000 of 40,000 rows, 5,300 rows/s`."""

    def render(self, task: Task) -> Text:
        """Say how much is done and how fast."""
        of = "" if task.total is None else f" of {int(task.total):,}"
        unit = task.fields.get("unit", "")
        speed = task.finished_speed or task.speed
        rate = f", {speed:,.0f} {unit}/s" if speed else ""
        return Text(f"{int(task.completed):,}{of} {unit}{rate}")


class _Bars(Progress):
    """Bars, and beneath them the newest table."""

    table: TableMarker | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """Give what is drawn."""
        yield from super().get_renderables()
        if self.table is not None:
            drawn = Table(*self.table.columns, title=self.table.title)
            for row in self.table.rows:
                drawn.add_row(*row)
            yield drawn


class Display:
    """Lines and bars on one console; entering starts the live part, leaving ends it."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bars = _Bars(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Amount(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: set[str] = set()
        self._top: tuple[str, ...] = ()
        self._title = title

    def __enter__(self) -> Self:
        if self._live:
            self._bars.start()
            self._tasks[""] = self._bars.add_task(self._title, total=None, unit="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._drop_title()
            self._bars.stop()

    def line(self, text: str) -> None:
        """Pass on a line of the job's log."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def show(self, marker: ProgressMarker) -> None:
        """Show how far a step is."""
        if not self._live:
            self._say_once(marker)
            return
        self._drop_title()
        task = self._tasks.get(marker.step)
        if task is None:
            task = self._bars.add_task(marker.step, total=marker.total, unit=marker.unit)
            self._tasks[marker.step] = task
        self._bars.update(task, completed=marker.done, total=marker.total, unit=marker.unit)

    def show_table(self, marker: TableMarker) -> None:
        """Show what was found so far; where nothing is live, a line for each new first row."""
        if self._live:
            self._bars.table = marker
            self._bars.refresh()
        elif marker.rows and marker.rows[0] != self._top:
            self._top = marker.rows[0]
            cells = zip(marker.columns, self._top, strict=True)
            self.line(f"{marker.title}: " + ", ".join(f"{name} {cell}" for name, cell in cells))

    def _drop_title(self) -> None:
        task = self._tasks.pop("", None)
        if task is not None:
            self._bars.remove_task(task)

    def _say_once(self, marker: ProgressMarker) -> None:
        is_done = marker.total is not None and marker.done >= marker.total
        key = f"{marker.step} {'done' if is_done else 'begun'}"
        if key not in self._said:
            self._said |= {key, f"{marker.step} begun"}
            of = "" if marker.total is None else f" of {marker.total:,}"
            self.line(f"{marker.step}: {marker.done:,}{of} {marker.unit}")
