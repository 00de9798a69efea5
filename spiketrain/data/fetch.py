"""Archives of a data set, from their public address into a folder that is whole or not there. Only called when a user asks for it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchvision.datasets.utils import download_url

from spiketrain.data.unpack import unpack
from spiketrain.errors import UserError


@dataclass(frozen=True)
class Archive:
    """A file as published: its name, its MD5, and its address where that is public and lasting (else empty)."""

    file: str
    md5: str
    url: str = ""


def fetch(archives: Sequence[Archive], target: Path) -> None:
    """Downloads archives into `target/../.downloads`, checks their MD5s, and unpacks them all as the folder `target`.

    What is there already is not fetched again: an archive whose MD5 is right, or the whole folder. A stopped download or
    unpacking leaves no `target`. Raises `UserError` where there is no network, or an archive is not what was published.
    """
    if target.exists():
        return
    downloads, part = target.parent / ".downloads", target.with_name(f".{target.name}.part")
    for archive in archives:
        try:
            download_url(archive.url, str(downloads), archive.file, archive.md5)
        except (OSError, RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            by_hand = f"get it by hand and put it into {downloads}"
            raise UserError(f"{archive.url}: {archive.file} cannot be fetched ({why}); {by_hand}") from error
    shutil.rmtree(part, ignore_errors=True)
    for archive in archives:
        unpack(downloads / archive.file, part)
    part.rename(target)
