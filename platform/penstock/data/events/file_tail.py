"""A JSON Lines file that another process appends to, as a source of events.

The file may be rotated: renamed within its folder (`payments.jsonl.1`), and a new one begun at its
path. Each file is a partition, `file:<path>#<generation>-<identity>`. Generations count up, and a
file is left for the next only when it was read to its end: so the highest generation among the
table's positions names the one file that may still hold events, whatever its name is by now.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from penstock.data.events import MAX_EVENT_BYTES, Event, JsonLinesTail
from penstock.errors import DataError

_LOOK_S = 0.02
_LAST_WORDS_S = 1.0
"""A writer may go on in a renamed file until it opens the new one; so long it may be silent."""
_CHUNK_BYTES = 1 << 20
_HEAD_BYTES = 4096
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_PLACE = re.compile(r"(\d+)-(\d+-[0-9a-f]+)")


class _Place(NamedTuple):
    """The file that was read last, by what the table's positions say."""

    generation: int
    identity: str
    position: int


class _OpenFile:
    """One file of the line of rotations, and how far it is read."""

    def __init__(self, path: Path, place: _Place | None, generation: int = 0) -> None:
        self.path = path
        self.generation = generation if place is None else place.generation
        self.identity = None if place is None else place.identity
        self.position = 0 if place is None else place.position
        self.file: BinaryIO = path.open("rb")
        self.is_rotated = False
        self.silent_since_s = 0.0

    def size_bytes(self) -> int:
        return os.fstat(self.file.fileno()).st_size

    def check(self, *, is_last_word: bool) -> None:
        """Learn which file this is as soon as its first line says so, and refuse another."""
        identity = _identify(self.file, is_last_word=is_last_word or self.identity is not None)
        if self.size_bytes() < self.position or self.identity not in (None, identity):
            raise DataError(
                f"{self.path} was cut or written anew after {self.position:,} bytes were read",
                next_step="what was written meanwhile may be lost: bring it by `penstock data "
                "ingest`; let the writer rename the file instead (logrotate without copytruncate), "
                "and declare the tail under another path",
            )
        self.identity = identity

    def lines(self, max_lines: int, *, is_last_word: bool) -> Iterator[tuple[int, bytes]]:
        """Give whole lines with where they start; the position moves with them.

        Args:
            max_lines: as many at most; blank ones do not count.
            is_last_word: nobody writes here any more, so a line without an end is one too.
        """
        self.file.seek(self.position)
        while max_lines:
            line, num_bytes, is_whole = _read_line(self.file)
            if not is_whole and not (is_last_word and num_bytes):
                return
            start = self.position
            self.position += num_bytes
            if line.strip():
                max_lines -= 1
                yield start, line


class FileTail:
    """Reads whole lines as they are written, through rotations, from where the table is."""

    def __init__(self, declared: JsonLinesTail) -> None:
        """Prepare; the file is opened by `open`, or when it appears."""
        self._path = declared.path.absolute()
        self._prefix = f"file:{self._path}#"
        self._now: _OpenFile | None = None

    def open(self, positions: Mapping[str, int], before_revoke: Callable[[], None]) -> None:
        """Find the file that was read last, by its content, and go on there.

        Raises:
            DataError: that file is gone, or shorter than what was read of it.
        """
        del before_revoke  # nobody else reads here
        place = self._newest(positions)
        if place is None:
            self._now = _open(self._path)
            return
        for path in self._family():
            if _identity_at(path) == place.identity:
                self._now = _OpenFile(path, place)
                self._now.check(is_last_word=False)
                return
        raise DataError(
            f"the file that was read as {self._path}, up to byte {place.position:,}, is gone",
            next_step="what stood behind that byte is not in the table: put the file back beside "
            f"it, as {self._path.name}.1 for example, or bring it by `penstock data ingest` and "
            "declare the tail under another path",
        )

    def poll(self, max_events: int, wait_s: float) -> list[Event]:
        """Give new whole lines.

        Raises:
            DataError: the file became shorter than what was read of it.
        """
        deadline_s = time.monotonic() + wait_s
        while True:
            events = self._read(max_events)
            left_s = deadline_s - time.monotonic()
            if events or left_s <= 0:
                return events
            time.sleep(min(_LOOK_S, left_s))

    def commit(self, positions: Mapping[str, int]) -> None:
        """Nothing to tell: a file remembers no reader."""

    def lag(self) -> int | None:
        """0 at the end of the newest file; else how many lines wait is not known."""
        now = self._now
        if now is None:
            return None if self._path.exists() else 0
        return 0 if now.size_bytes() == now.position and not self._is_rotated(now) else None

    def close(self) -> None:
        """Close the file."""
        if self._now is not None:
            self._now.file.close()
            self._now = None

    def _read(self, max_events: int) -> list[Event]:
        now = self._now = self._now or _open(self._path)
        if now is None:
            return []
        if self._is_rotated(now) and not now.is_rotated:
            now.is_rotated, now.silent_since_s = True, time.monotonic()
        is_done = now.is_rotated and time.monotonic() - now.silent_since_s > _LAST_WORDS_S
        events: list[Event] = []
        if now.size_bytes() != now.position:
            now.check(is_last_word=is_done)
            if now.identity is not None:
                partition = f"{self._prefix}{now.generation}-{now.identity}"
                for start, line in now.lines(max_events, is_last_word=is_done):
                    events.append(Event(partition, start, now.position, line))
        if events:
            now.silent_since_s = time.monotonic()
        elif is_done:
            self._now = self._next(now)
            now.file.close()
        return events

    def _next(self, done: _OpenFile) -> _OpenFile | None:
        """Open the file that was begun after this one: a later rotation, or the newest."""
        modified_ns = os.fstat(done.file.fileno()).st_mtime_ns
        rotated = [path for path in self._family() if path != self._path]
        later = [
            (path.stat().st_mtime_ns, path)
            for path in rotated
            if path.stat().st_size and not _is_same(path, done.file)
        ]
        between = sorted(entry for entry in later if entry[0] > modified_ns)
        path = between[0][1] if between else self._path
        return _open(path, done.generation + 1)

    def _is_rotated(self, now: _OpenFile) -> bool:
        """Whether another file stands at the path than the one that is read."""
        try:
            return not _is_same(self._path, now.file)
        except FileNotFoundError:
            return False

    def _newest(self, positions: Mapping[str, int]) -> _Place | None:
        places = [
            _Place(int(found.group(1)), found.group(2), position)
            for name, position in positions.items()
            if name.startswith(self._prefix)
            and (found := _PLACE.fullmatch(name.removeprefix(self._prefix)))
        ]
        return max(places, default=None)

    def _family(self) -> list[Path]:
        """The file, and what stands beside it under its name with something behind."""
        name = self._path.name
        return [
            path
            for path in sorted(self._path.parent.iterdir())
            if path.name.startswith((f"{name}.", f"{name}-")) or path.name == name
            if path.suffix not in _COMPRESSED and path.is_file()
        ]


def _open(path: Path, generation: int = 0) -> _OpenFile | None:
    try:
        return _OpenFile(path, None, generation)
    except FileNotFoundError:
        return None


def _is_same(path: Path, file: BinaryIO) -> bool:
    return os.path.samestat(path.stat(), os.fstat(file.fileno()))


def _identity_at(path: Path) -> str | None:
    with path.open("rb") as file:
        return _identify(file, is_last_word=True)


def _identify(file: BinaryIO, *, is_last_word: bool) -> str | None:
    """Name a file by its number and its first line; None while that is not whole."""
    head = os.pread(file.fileno(), _HEAD_BYTES, 0)
    line, end, _ = head.partition(b"\n")
    if not end and len(head) < _HEAD_BYTES and not is_last_word:
        return None
    # A number alone may be given again to a new file when the old one is removed.
    digest = hashlib.blake2b(line, digest_size=8).hexdigest()
    return f"{os.fstat(file.fileno()).st_ino}-{digest}"


def _read_line(file: BinaryIO) -> tuple[bytes, int, bool]:
    """Read up to the line's end; of a line too long only the begin is kept."""
    line = part = file.readline(MAX_EVENT_BYTES)
    num_bytes = len(line)
    while part and not part.endswith(b"\n"):
        part = file.readline(_CHUNK_BYTES)
        num_bytes += len(part)
    return line, num_bytes, part.endswith(b"\n")
