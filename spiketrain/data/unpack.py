"""Archives of data sets, unpacked so that nothing gets out of the folder and no more comes out than an archive of its size honestly has."""

import bz2
import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from spiketrain.errors import UserError

INFLATE = 200
"""An archive that claims to unpack to more than so many times its size is refused: recordings and images shrink by less."""


MOST_READ = 1 << 20


@dataclass(frozen=True)
class Bounded:
    """A file from which tarfile reads: an extended header can claim any size, also a negative one, which would be read at once."""

    stream: IO[bytes]

    def read(self, size: int) -> bytes:
        """So many bytes, if that is what is ever read of a tar file at once."""
        if not 0 <= size <= MOST_READ:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.stream.read(size)

    def seek(self, place: int) -> int:
        """Goes there."""
        return self.stream.seek(place)

    def tell(self) -> int:
        """Where it is."""
        return self.stream.tell()


def _plain(archive: Path) -> IO[bytes]:
    return archive.open("rb")


def unpack(archive: Path, target: Path) -> None:
    """Unpacks a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz into the folder `target`.

    Only plain files and folders come out, under `target`: a member with an absolute name or `..` in it, a link, a device, or a
    size that the archive cannot have is a `UserError`, and nothing of such an archive is written.
    """
    most = INFLATE * archive.stat().st_size + (1 << 20)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as found:
                _check(archive, [(m.filename, m.file_size) for m in found.infolist()], most)
                found.extractall(target)
        else:
            openers: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
            opener = openers.get(archive.suffix, _plain)
            with opener(archive) as stream, tarfile.open(fileobj=Bounded(stream), mode="r:") as found:  # type: ignore[call-overload]
                _check(archive, [(m.name, _size(archive, m)) for m in _members(archive, found, most)], most)
                found.extractall(target, filter="data")
    except UserError:
        raise
    except Exception as error:  # what a damaged archive raises depends on how it was compressed
        why = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise UserError(f"{archive}: cannot be unpacked ({why}): get it again") from error


def _members(archive: Path, found: tarfile.TarFile, most: int) -> list[tarfile.TarInfo]:
    """The headers, while what lies between them is no more than `most` bytes (to find the next one, all of it is inflated)."""
    members = []
    for member in found:
        members.append(member)
        if not 0 <= found.offset <= most:
            raise UserError(f"{archive}: claims to unpack to more than {most:,} bytes: it is damaged or hostile")
    return members


def _size(archive: Path, member: tarfile.TarInfo) -> int:
    if not member.isreg() and not member.isdir():
        raise UserError(f"{archive}: {member.name[:80]!r} is a link or a device: only plain files and folders are unpacked")
    return member.size if member.isreg() else 0


def _check(archive: Path, members: list[tuple[str, int]], most: int) -> None:
    total = 0
    for name, size in members:
        parts = Path(name.replace("\\", "/")).parts
        if not parts or ".." in parts or parts[0] == "/" or ":" in parts[0] or not name.isprintable():
            raise UserError(f"{archive}: the name {name[:80]!r} leads out of the folder: it is damaged or hostile")
        total += max(size, 0)
    if total > most:
        raise UserError(f"{archive}: claims to unpack to {total:,} bytes: it is damaged or hostile")
