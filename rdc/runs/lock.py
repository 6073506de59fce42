"""Files that one run holds alone."""

__all__ = ["hold"]

try:
    import fcntl
except ImportError:  # not on Windows, where nothing prevents two runs from sharing a file
    fcntl = None  # type: ignore[assignment]


def hold(file: int) -> None:
    """Hold an open file until it is closed.

    Raises:
        OSError: if another run holds it.
    """
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
