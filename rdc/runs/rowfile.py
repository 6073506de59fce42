"""Files of rows, one JSON line an image, that are written so that nothing is lost and read so that nothing is believed.

The first line is ``{"config": {...}, "format": 2}``: what decides the numbers, but not which images. Then comes one object a line
with the ``index`` of its image, ``image`` (a digest of image and label), its fields, and ``check``: a hash of these (times apart)
with the configuration, so that a row that was edited, or copied from another file, is noticed.

Rows are appended by one ``write`` and flushed to disk; a kill loses what is in flight. A last line that was torn is cut when the
run starts again. A file may hold rows of other images than those of a run: they are kept, so that any run can be extended. When a
run ends, its file is sorted by index.
"""

__all__ = ["RowFile", "fill", "pieces", "read_rows"]

import errno
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rdc.runs.fingerprint import differences
from rdc.runs.lock import hold
from rdc.runs.record import write_atomic
from rdc.runs.workers import parallel

Row = dict[str, Any]
#: The types of a row's fields: a type, a tuple of types, or a dict of fields; the field ``str`` stands for every name.
Schema = Any
HEAD, FORMAT = b'{"config": ', 2
REMEDY = "remove that line to do its image again"


def read_rows(path: str | Path, schema: Schema = None) -> tuple[dict[str, Any], list[Row]]:
    """Return configuration and rows of a file, also of a run that is going on; a torn last line is left out.

    Arguments:
        path: The file.
        schema: Fields that each row must have, with their types; by default what all rows have.

    Raises:
        ValueError: if there is no such file, it is no file of rows, or one of its rows cannot be believed.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"no rows in {path} ({error.strerror})") from error
    found = parse(content, path, schema)
    if found.config is None:
        raise ValueError(f"{path} is not a file of rows: it is empty")
    return found.config, [found.rows[i] for i in sorted(found.rows)]


@dataclass
class Content:
    """What a file holds: configuration (None if there is no whole first line), rows and their lines by index, whole bytes."""

    config: dict[str, Any] | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    lines: dict[int, int] = field(default_factory=dict)
    size: int = 0


def parse(content: bytes, path: str | Path, schema: Schema = None) -> Content:
    """Return what a file holds, checked."""
    lines, found = content.splitlines(keepends=True), Content()
    if not lines or (len(lines) == 1 and not content.endswith(b"\n") and content.startswith(HEAD[: len(content)])):
        return found
    found.config = header(lines[0], path)
    found.size, secret = len(lines[0]), key(found.config)
    wanted = {"index": int, "image": str, **(schema or {}), "check": str}
    for number, line in enumerate(lines[1:], 2):
        try:
            row: Any = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if row is None and number == len(lines):
            break  # torn
        fault = "it is no JSON" if row is None else misfit(row, wanted) or distrust(row, secret, found)
        if fault:
            raise ValueError(f"{path} is damaged at line {number}: {fault}; {REMEDY}")
        found.rows[row["index"]], found.lines[row["index"]] = row, number
        found.size += len(line)
    return found


def header(line: bytes, path: str | Path) -> dict[str, Any]:
    """Return the configuration in the first line."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        value = None
    if not isinstance(value, dict) or not isinstance(value.get("config"), dict):
        raise ValueError(f"{path} is not a file of rows: no configuration in line 1; give another name")
    if value.get("format") != FORMAT:
        raise ValueError(f"{path} is a file of rows of format {value.get('format', 1)}, not {FORMAT}; give another name")
    config: dict[str, Any] = value["config"]
    return config


def misfit(value: Any, schema: Schema, at: str = "") -> str:
    """Return what is wrong with a value of JSON, or nothing."""
    if isinstance(schema, Mapping):
        if not isinstance(value, dict):
            return f"{at or 'the row'} is no object"
        fields = [(k, inner) for name, inner in schema.items() for k in (value if name is str else [name])]
        for k, inner in fields:
            fault = misfit(value[k], inner, f"{at}.{k}" if at else k) if k in value else f"{k} is missing in {at or 'it'}"
            if fault:
                return fault
        return ""
    kinds = schema if isinstance(schema, tuple) else (schema,)
    fits = type(value) in kinds or (type(value) is int and float in kinds)  # True is no number
    names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
    return "" if fits else f"{at} is {json.dumps(value)[:40]}, not {names}"


def distrust(row: Row, secret: bytes, found: Content) -> str:
    """Return why a row of the right form is not to be believed, or nothing."""
    if row["check"] != seal(row, secret):
        return f"the row of image {row['index']} was edited or comes from another file"
    if row["index"] in found.rows:
        return f"it repeats image {row['index']} of line {found.lines[row['index']]}"
    return ""


def key(config: dict[str, Any]) -> bytes:
    """Return what a configuration adds to the hash of each of its rows."""
    return hashlib.blake2b(json.dumps(config, sort_keys=True).encode()).digest()


def seal(row: Row, secret: bytes) -> str:
    """Return the hash of a row's content, times apart, and its configuration."""
    content = json.dumps(timeless({k: v for k, v in row.items() if k != "check"}), sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8, key=secret).hexdigest()


def timeless(value: Any) -> Any:
    """Return a value of JSON without its ``seconds``."""
    return {k: timeless(v) for k, v in value.items() if k != "seconds"} if isinstance(value, dict) else value


class RowFile:
    """The rows of a run: those of the file, if it belongs to the same configuration, and those to come.

    Arguments:
        path: The file; None keeps the rows in memory.
        config: What decides the numbers, as JSON.
        schema: Fields of each row with their types, see ``misfit``.
        images: Digest of each image of the run by its index; a row of the file with that index must be of the same image.

    Raises:
        ValueError: if the file is of another configuration (all differences are named) or of other images, damaged, or no file of
            rows.
        OSError: if it cannot be written, or another run is writing to it.
    """

    def __init__(
        self, path: str | Path | None, config: dict[str, Any], schema: Schema = None, images: Mapping[int, str] | None = None
    ) -> None:
        self.path, self.rows, self._file = None if path is None else Path(path), dict[int, Row](), -1
        self.config: dict[str, Any] = json.loads(json.dumps(config))
        self._images, self._schema = images or {}, schema
        if self.path is not None:
            with self._told("open"):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                self._lock(self.path)
                self._start(self.path)
            except BaseException:
                self.close()
                raise
        self._secret = key(self.config)

    def _lock(self, path: Path) -> None:
        try:
            hold(self._file)
            free = os.fstat(self._file).st_ino == os.stat(path).st_ino  # else the other run has just replaced it
        except OSError:
            free = False
        if not free:
            raise OSError(f"another run is writing to {path}; wait for it, or give another name")

    def _start(self, path: Path) -> None:
        content = path.read_bytes()
        found = parse(content, path)
        if found.config is not None and (lines := differences(found.config, self.config)):
            text = "; ".join(lines)
            raise ValueError(f"{path} holds another run: {text}. Give another name, or the options of that run")
        found = parse(content, path, self._schema)
        for i, number in found.lines.items():
            if i in self._images and found.rows[i]["image"] != self._images[i]:
                text = f"image {i} of line {number} is not image {i} of this run; give another name"
                raise ValueError(f"{path} holds other images: {text}")
        self.rows = found.rows
        with self._told("write"):
            if found.size < len(content):
                os.ftruncate(self._file, found.size)
            if found.config is None:
                self._write({"config": self.config, "format": FORMAT})
            else:
                self.config = found.config

    def append(self, *rows: Row) -> None:
        """Add rows: on disk when this returns, or none of them."""
        sealed = [{**row, "check": seal(row, self._secret)} for row in rows]
        if self.path is not None:
            with self._told("write"):
                self._write(*sealed)
        self.rows.update((row["index"], row) for row in sealed)

    def _write(self, *values: dict[str, Any]) -> None:
        size, lines = os.fstat(self._file).st_size, b"".join(map(encode, values))
        try:
            if os.write(self._file, lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise

    def finish(self) -> list[Row]:
        """Sort the file, if its rows came in another order, and return the rows of this run (of all, if it named no images)."""
        order = sorted(self.rows)
        if self.path is not None and list(self.rows) != order:
            with self._told("sort"):
                head = self.path.read_bytes().splitlines(keepends=True)[0]
                write_atomic(self.path, head + b"".join(encode(self.rows[i]) for i in order))
        return [self.rows[i] for i in order if i in self._images or not self._images]

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
        """Turn an ``OSError`` into one line that names the file and says what became of the rows."""
        try:
            yield
        except OSError as error:
            kept = f"; its {len(self.rows)} rows are intact, the same command continues" if self.rows else ""
            told = OSError(f"cannot {what} {self.path}: {error.strerror or error}{kept}")
            told.errno = error.errno
            raise told from error


def encode(value: dict[str, Any]) -> bytes:
    """Return one line of JSON."""
    return (json.dumps(value, allow_nan=False) + "\n").encode()


def pieces(ids: Sequence[int], block: int, done: Collection[int] = ()) -> list[tuple[int, ...]]:
    """Return the positions that are not done, those of one block (the same ``index // block``) together, by index.

    >>> pieces([5, 0, 1, 4, 3], 2, done=[4])
    [(1, 2), (4,), (0,)]
    """
    parts: dict[int, list[int]] = {}
    for i, position in sorted((i, position) for position, i in enumerate(ids) if i not in done):
        parts.setdefault(i // block, []).append(position)
    return [tuple(part) for part in parts.values()]


def fill(
    work: Callable[[Sequence[int]], list[Row]],
    images: Mapping[int, str],
    path: str | Path | None,
    config: dict[str, Any],
    schema: Schema = None,
    block: int = 1,
    workers: int = 1,
    quiet: bool = True,
) -> list[Row]:
    """Return one row for every image, made where the file does not have it yet; other rows of the file are kept, not returned.

    Arguments:
        work: Makes the rows of some positions; a row must depend on its own image only. With workers it must be picklable.
        images: Digest of each image by its index, in the order of the positions.
        path: File of rows; None keeps them in memory.
        config: What decides the rows.
        schema: Fields of a row with their types.
        block: Images made together: those with the same ``index // block``.
        workers: Processes that share the blocks; this one alone writes.
        quiet: Whether to hide the progress bar.
    """
    with RowFile(path, config, schema, images) as table:
        todo = pieces(list(images), block, table.rows)
        left = sum(map(len, todo))
        bar = tqdm(total=len(images), initial=len(images) - left, disable=quiet, desc="evaluate", unit="image")
        with bar, closing(parallel(work, todo, workers) if workers > 1 else (work(part) for part in todo)) as made:
            for rows in made:
                table.append(*rows)
                bar.update(len(rows))
        return table.finish()
