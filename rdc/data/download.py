"""Archives from the network: fetched only when asked to, checked against a hash before anything of them is unpacked."""

__all__ = ["Archive", "download"]

import hashlib
import shutil
import tarfile
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from rdc.data.idx import DataError

SECONDS = 30.0  # without a byte


@dataclass(frozen=True)
class Archive:
    """A published ``.tar.gz``: its address, the kind and value of its hash, and the one folder that it holds."""

    url: str
    kind: str
    digest: str
    inside: str


def download(archive: Archive, folder: Path) -> Path:
    """Fetch an archive and unpack its plain files; return the folder in which they lie afterwards.

    The files are whole or absent: they are unpacked elsewhere and moved. Links, devices and paths that lead out of the archive's
    own folder are left out.

    Arguments:
        archive: What to fetch.
        folder: Where its folder shall lie; made if there is none.

    Raises:
        DataError: if there is no network, the file has another hash or is no archive.
    """
    name, home = archive.url.rpartition("/")[2], folder / archive.inside
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        file, out = Path(scratch, "archive"), Path(scratch, "files")
        try:
            with urllib.request.urlopen(archive.url, timeout=SECONDS) as source, file.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (OSError, ValueError) as error:
            raise DataError(f"cannot download {archive.url} ({error}); put {name} or its files into {folder}") from error
        unpack(file, archive, out)
        shutil.rmtree(home, ignore_errors=True)
        out.rename(home)
    return home


def unpack(file: Path, archive: Archive, out: Path) -> None:
    """Check the hash of a file, then write the plain files of its folder to ``out``."""
    found = digest(file, archive.kind)
    if found != archive.digest:
        raise DataError(f"{archive.url} is damaged or another file: its {archive.kind} is {found}, not {archive.digest}")
    out.mkdir()
    try:
        with tarfile.open(file, "r:gz") as packed:
            for member in packed:
                path = Path(member.name)
                if member.isfile() and path.parent == Path(archive.inside) and (content := packed.extractfile(member)):
                    with content, (out / path.name).open("wb") as target:
                        shutil.copyfileobj(content, target)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{archive.url} is no archive that can be unpacked ({error})") from error


def digest(file: Path, kind: str) -> str:
    """The hash of a file, read in pieces."""
    found = hashlib.new(kind)
    with file.open("rb") as stream:
        while piece := stream.read(2**20):
            found.update(piece)
    return found.hexdigest()
