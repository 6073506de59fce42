"""Run records: a result with its counts, interval, seed, configuration, versions, device, seconds and commit."""

__all__ = ["environment", "read_record", "write_atomic", "write_record"]

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
    """A record; a missing or damaged one gives one line that says so."""
    try:
        return json.loads(Path(path).read_text(encoding="utf8"))
    except OSError as error:
        raise ValueError(f"no record {path} ({error.strerror}); run the notebook with the profile that writes it") from error
    except ValueError as error:
        raise ValueError(f"{path} is not a record ({error}); restore it with 'git checkout'") from error


def environment() -> dict[str, Any]:
    """Date, versions, device and commit of this run."""
    versions = {name: version(name) for name in PACKAGES}
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": {k: v for k, v in versions.items() if v},
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
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
    if is_dataclass(value):
        return asdict(value)
    if isinstance(value, torch.Tensor):
        return value.tolist()
    raise TypeError(f"cannot record a {type(value).__name__}")
