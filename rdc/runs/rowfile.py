"""A file of rows that grows by one complete line at a time: a kill loses the row in flight (each
worker's: :mod:`rdc.runs.workers`).

The first line is ``{"config": {...}}``, what decides the numbers; then comes one JSON object per line, each with its own
``index``. A line is appended by one ``write`` and flushed to disk. A last line that was torn by a kill or a crash is cut when
the run starts again. The finished file is sorted by index.
"""

__all__ = ["RowFile", "fill", "read_rows"]

import errno
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rdc.runs.fingerprint import differences
from rdc.runs.record import write_atomic
from rdc.runs.workers import parallel

try:
    import fcntl
except ImportError:  # not on Windows, where nothing prevents two runs from sharing a file
    fcntl = None  # type: ignore[assignment]

Row = dict[str, Any]
HEAD = b'{"config": '


def read_rows(path: str | Path) -> tuple[dict[str, Any], list[Row]]:
    """Configuration and rows of a file, also of a run that is going on; a torn last line is left out.

    Raises:
        ValueError: if there is no such file, or it is no file of rows.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"no rows in {path} ({error.strerror})") from error
    config, rows, _ = parse(content, path)
    if config is None:
        raise ValueError(f"{path} is not a file of rows: it is empty")
    return config, [rows[i] for i in sorted(rows)]


def parse(content: bytes, path: str | Path) -> tuple[dict[str, Any] | None, dict[int, Row], int]:
    """Configuration (None if the file is empty or its first line is torn), rows by index, and the bytes that are whole."""
    lines = content.splitlines(keepends=True)
    if not lines or (len(lines) == 1 and not content.endswith(b"\n") and content.startswith(HEAD[: len(content)])):
        return None, {}, 0
    config, rows, size = None, {}, 0
    for number, line in enumerate(lines, 1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("torn")
            value = json.loads(line)
            if number == 1:
                config = value["config"]
                config["n"]
            else:
                rows.setdefault(int(value["index"]), value)
        except (ValueError, KeyError, TypeError) as error:
            if number == 1:
                raise ValueError(f"{path} is not a file of rows: no configuration in line 1; give another name") from error
            if number < len(lines):
                raise ValueError(f"{path} is damaged at line {number}; remove that line to do its image again") from error
            break
        size += len(line)
    return config, rows, size


class RowFile:
    """The rows of a run: those of the file, if it belongs to the same configuration, and those to come.

    Arguments:
        path: The file; None keeps the rows in memory.
        config: What decides the numbers, as JSON; its ``n`` is the number of rows of the finished file.

    Raises:
        ValueError: if the file is of another configuration (all differences are named), damaged, or no file of rows.
        OSError: if it cannot be written, or another run is writing to it.
    """

    def __init__(self, path: str | Path | None, config: dict[str, Any]) -> None:
        self.path, self.rows, self._file = None if path is None else Path(path), {}, -1
        if self.path is None:
            return
        config = json.loads(json.dumps(config))
        with self._told("open"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._start(config)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            if fcntl:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.fstat(self._file).st_ino == os.stat(self.path).st_ino  # else the other run has just replaced it
        except OSError:
            free = False
        if not free:
            raise OSError(f"another run is writing to {self.path}; wait for it, or give another name")

    def _start(self, config: dict[str, Any]) -> None:
        content = self.path.read_bytes()
        found, self.rows, size = parse(content, self.path)
        if found is not None and (lines := differences(found, config)):
            text = "; ".join(lines)
            raise ValueError(f"{self.path} holds another run: {text}. Give another name, or the options of that run")
        with self._told("write"):
            if size < len(content):
                os.ftruncate(self._file, size)
            if found is None:
                self._write({"config": config})

    def append(self, row: Row) -> None:
        """Add one row: on disk when this returns, or not at all."""
        if self.path is not None:
            with self._told("write"):
                self._write(row)
        self.rows[int(row["index"])] = row

    def _write(self, value: dict[str, Any]) -> None:
        size, line = os.fstat(self._file).st_size, encode(value)
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise

    def finish(self) -> list[Row]:
        """All rows by index; the file is sorted if its rows came in another order."""
        rows = [self.rows[i] for i in sorted(self.rows)]
        if self.path is not None and list(self.rows) != sorted(self.rows):
            with self._told("sort"):
                head = self.path.read_bytes().splitlines(keepends=True)[0]
                write_atomic(self.path, head + b"".join(map(encode, rows)))
        return rows

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turns an ``OSError`` into one line that names the file and says what became of the rows."""
        try:
            yield
        except OSError as error:
            kept = f"; its {len(self.rows)} rows are intact, the same command continues" if self.rows else ""
            told = OSError(f"cannot {what} {self.path}: {error.strerror or error}{kept}")
            told.errno = error.errno
            raise told from error


def encode(value: dict[str, Any]) -> bytes:
    """One line of JSON."""
    return (json.dumps(value, allow_nan=False) + "\n").encode()


def fill(
    work: Callable[[int], Row],
    ids: Sequence[int],
    path: str | Path | None,
    config: dict[str, Any],
    workers: int = 1,
    quiet: bool = True,
) -> list[Row]:
    """Rows ``work(position)`` with ``index = ids[position]`` for every position whose row is not yet in the file.

    Arguments:
        work: Makes a row; its result must depend on the position only. With workers it must be picklable.
        ids: The index of each position, all different.
        path: File of rows; None keeps them in memory.
        config: What decides the rows.
        workers: Processes; this one alone writes.
        quiet: Whether to hide the progress bar.
    """
    with RowFile(path, {**config, "n": len(ids)}) as table:
        todo = [position for position, i in enumerate(ids) if i not in table.rows]
        bar = tqdm(total=len(ids), initial=len(ids) - len(todo), disable=quiet, desc="evaluate", unit="image")
        with bar, closing(parallel(work, todo, workers) if workers > 1 else (work(p) for p in todo)) as rows:
            for row in rows:
                table.append(row)
                bar.update()
        return table.finish()
