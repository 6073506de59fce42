"""Run records: a result with its counts, interval, seed, configuration, versions, device, seconds and commit."""

__all__ = ["book_folder", "environment", "read_record", "record_path", "stored_record", "write_atomic", "write_record"]

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "scipy", "pyautoattack")


def write_record(path: str | Path, config: dict[str, Any], results: Any, seconds: float) -> Path:  # noqa: ANN401, any JSON
    """Write ``{"results", "config", "seconds", "environment"}`` as JSON, whole or not at all.

    Arguments:
        path: The file, usually ``results/<name>.json``.
        config: Everything that decides the numbers, the seed included.
        results: What was measured; dataclasses such as :class:`rdc.evaluate.Accuracy` are unfolded.
        seconds: Wall time of the run.
    """
    record = {"results": results, "config": config, "seconds": round(seconds, 1), "environment": environment()}
    write_atomic(Path(path), (json.dumps(record, indent=1, default=unfold) + "\n").encode())
    return Path(path)


def read_record(path: str | Path) -> dict[str, Any]:
    """Return a record.

    Raises:
        ValueError: if it is missing or damaged, with one line that says so.
    """
    path = record_path(path)
    try:
        record = json.loads(path.read_text(encoding="utf8"))
        if not isinstance(record, dict):
            raise ValueError(f"it holds {type(record).__name__}, no object")
        return record
    except OSError as error:
        raise ValueError(f"no record {path} ({error.strerror}); run the notebook with the profile that writes it") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a record ({error}); restore it with 'git checkout'") from error


def stored_record(path: str | Path) -> dict[str, Any]:
    """Return a record, empty where it was never made.

    Raises:
        ValueError: if the folder of records is not found, or what is there is no record.
    """
    return read_record(path) if record_path(path).exists() else {}


def record_path(path: str | Path) -> Path:
    """Return where a record lies: ``results/NAME.json`` in the book's own folder, whatever the working directory is.

    Raises:
        ValueError: if its folder does not exist.
    """
    path = Path(path)
    if not path.is_absolute() and path.parts[:-1] in (("results",), ("..", "results")):
        return book_folder("results") / path.name
    if not path.parent.is_dir():
        raise ValueError(f"there is no folder {path.parent} with a record {path.name}; give results/{path.name} or a full path")
    return path


def book_folder(name: str) -> Path:
    """Return a folder of the book (``notebooks``, ``profiles``, ``results``): beside the package, or in it once it is installed.

    Raises:
        ValueError: if there is none.
    """
    package = Path(__file__).parents[1]
    found = [package / "book" / name] + ([package.parent / name] if (package.parent / "pyproject.toml").is_file() else [])
    for folder in found:
        if folder.is_dir():
            return folder
    raise ValueError(f"the folder {name} of the book is not at {' or '.join(map(str, found))}; install the package again")


def environment(device: str | None = None) -> dict[str, Any]:
    """Return date, versions, device and commit of this run; by default the device is a GPU if there is one."""
    versions = {name: version(name) for name in PACKAGES}
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {k: v for k, v in versions.items() if v},
        "device": torch.cuda.get_device_name(device)
        if (torch.cuda.is_available() if device is None else torch.device(device).type == "cuda")
        else f"CPU {platform.machine()}, {torch.get_num_threads()} threads",
        "commit": commit(),
    }


def version(name: str) -> str:
    """Version of an installed package, or an empty string."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def commit() -> str:
    """The commit of the source tree, marked if the package differs from it; empty outside a repository."""
    root = Path(__file__).parents[1]
    try:
        head = subprocess.run(["git", "-C", root, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "-C", root, "status", "--porcelain", "."], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path``, flush it to disk and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def unfold(value: Any) -> Any:  # noqa: ANN401, the hook of json
    """Dataclasses and tensors as JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, torch.Tensor):
        return value.tolist()
    raise TypeError(f"cannot record a {type(value).__name__}")
