"""Any data set by its name, images and events alike: `load`."""

import os
from pathlib import Path

from spiketrain.data import event_sets, imagenet
from spiketrain.data.images import IMAGE_SETS, is_image_folder, load_folder
from spiketrain.data.shards import is_shard_folder
from spiketrain.data.types import DataSet
from spiketrain.data.view import View
from spiketrain.errors import UserError, unknown

ROOT_VARIABLE = "SPIKETRAIN_DATA"
NAMES = (*IMAGE_SETS, *imagenet.STREAMED, *event_sets.SETS)


def data_root(given: str | Path | None = None) -> Path:
    """The folder that holds data sets: the one given, else of the environment variable SPIKETRAIN_DATA, else `data`."""
    return Path(given or os.environ.get(ROOT_VARIABLE) or "data")


def load(
    name: str,
    root: str | Path | None = None,
    *,
    download: bool = False,
    image_size: int = 0,
    view: View | None = None,
    stream: bool = False,
    steps: int = 4,
    event_size: int = 48,
    split: str = "",
    frames_by: str = "time",
    frame_kind: str = "sum",
    frame_window: int = 0,
    frame_resize: str = "events",
    workers: int = 0,
) -> DataSet:
    """A data set of `NAMES`, or a folder (a path, or under the root) of images or recordings with one subfolder a class.

    Images are returned as they are and know nothing of steps; recordings come as frames, `steps` of them, from the frame
    cache. Shards, ImageNet, and with `stream` any folder of images with train/ and val/, are not held but decoded when needed, as
    `view` says. `split`: of an event set, "" for its default. Raises `UserError` where the name is unknown or files are absent.
    """
    base = data_root(root)
    if name in IMAGE_SETS:
        return IMAGE_SETS[name].load(base, download)
    view = view or View(image_size or 224)
    if name in imagenet.STREAMED:
        return imagenet.load(name, base, view, workers)
    folder = Path(name) if Path(name).is_dir() else base / name
    if name not in event_sets.SETS:
        if not folder.is_dir():
            known = unknown("data set", name, NAMES)
            raise UserError(f"{known}, or a folder with one subfolder a class")
        if is_shard_folder(folder):
            return imagenet.load_shards(folder, view, workers, base)
        if stream:
            if not imagenet.is_tree(folder):
                raise UserError(f"{folder}: to stream, train/CLASS/ and val/CLASS/ are expected in it")
            return imagenet.load_tree(folder, view, workers)
        if is_image_folder(folder):
            return load_folder(folder, image_size)
    return event_sets.load(
        name, base, steps=steps, size=event_size or None, split=split or None, by=frames_by, window=frame_window or None, kind=frame_kind,
        resize=frame_resize, workers=workers, download=download,
    )  # fmt: skip
