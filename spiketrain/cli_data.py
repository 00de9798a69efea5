"""`spiketrain data info | show | simulate | shard`: looking at data sets, making event versions of image sets, and tar shards."""

import argparse
from pathlib import Path
from typing import Any

from spiketrain.data import event_sets, imagenet, sets, show
from spiketrain.data.imagenet import STREAMED
from spiketrain.data.images import IMAGE_SETS
from spiketrain.data.simulate import FORMATS, Camera, simulate_set
from spiketrain.errors import UserError, unknown

WHAT = ("info", "show", "simulate", "shard")


def add(commands: Any, **options: Any) -> argparse.ArgumentParser:
    """Adds the command `data` to the main parser."""
    parser: argparse.ArgumentParser = commands.add_parser("data", help="look at a data set, or simulate an event camera", **options)
    parser.add_argument("what", metavar="WHAT", help="info | show | simulate | shard")
    parser.add_argument("name", metavar="NAME", help="data set, or a folder with one subfolder a class")
    parser.add_argument("to", nargs="?", metavar="OUT", help="shard: the new folder for train-*.tar, val-*.tar and classes.txt")
    parser.add_argument("--shard-mb", type=int, default=256, metavar="N", help="shard: about so many megabytes each (default: 256)")
    parser.add_argument("--data-root", metavar="DIR", help="where data sets lie (default: environment SPIKETRAIN_DATA, else ./data)")
    parser.add_argument("--index", type=int, default=0, metavar="N", help="show: which sample (default: 0)")
    parser.add_argument("--part", default="test", metavar="train|test", help="show: of which part (default: test)")
    parser.add_argument("--steps", type=int, default=8, metavar="T", help="show: frames (default: 8)")
    parser.add_argument("--split", default=None, metavar="NAME", help="info, show: how an event set is divided")
    parser.add_argument("--out", metavar="PATH", help="show: name of the pictures; simulate: folder for the recordings")
    parser.add_argument("--zoom", type=float, default=1.0, metavar="X", help="simulate: pixels of the camera a pixel of the image")
    parser.add_argument("--format", default="bin", metavar="|".join(FORMATS), help="simulate: file format (default: bin)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="simulate: so many images of each part only; 0: all")
    return parser


def run(options: argparse.Namespace) -> int:
    """Runs `spiketrain data`."""
    root = sets.data_root(options.data_root)
    if options.what not in WHAT:
        raise unknown("data command", options.what, WHAT)
    if options.to and options.what != "shard":
        raise UserError(f"unknown argument {options.to!r}: data {options.what} takes one name")
    if options.what == "shard":
        return _shard(options, root)
    if options.what == "info":
        return _info(options, root)
    return _show(options, root) if options.what == "show" else _simulate(options, root)


def _info(options: argparse.Namespace, root: Path) -> int:
    from rich import print as rich_print

    if options.name in IMAGE_SETS or options.name in STREAMED:
        entry = IMAGE_SETS[options.name] if options.name in IMAGE_SETS else STREAMED[options.name]
        rows = {"what": entry.title, "source": entry.page, "licence": entry.licence, "cite": entry.citation, "layout": entry.layout}
        print("\n".join(f"{key:<8} {value}" for key, value in rows.items()))
        return 0
    if not event_sets.known(options.name, root):
        raise unknown("data set", options.name, sets.NAMES)
    rich_print(show.info(options.name, root, options.split))
    return 0


def _show(options: argparse.Namespace, root: Path) -> int:
    out = options.out or f"{Path(options.name).name}-{options.part}-{options.index}"
    for file in show.show(options.name, options.index, out, root, options.part, options.steps, options.split):
        print(file)
    return 0


def _simulate(options: argparse.Namespace, root: Path) -> int:
    if not options.out:
        raise UserError("simulate writes many files: name a new folder with --out")
    data = sets.load(options.name, root)
    if data.train.stream:
        raise UserError(f"{options.name} is too large to be held: name a smaller set of images")
    if data.train.framed:
        raise UserError(f"{options.name} has events already: name a set of images")
    for part, split in (("train", data.train), ("test", data.test)):
        images, labels = (x[: options.limit or None].numpy() for x in (split.inputs, split.labels))
        images = images[:, 0] if images.shape[1] == 1 else images  # grey [N,H,W], colour [N,3,H,W]
        count = simulate_set(images, labels, data.classes, options.out, part, options.format, Camera(zoom=options.zoom))
        print(f"{Path(options.out) / part}: {count:,} recordings")
    return 0


def _shard(options: argparse.Namespace, root: Path) -> int:
    if not options.to:
        raise UserError("shard writes large files: name a new folder, as in: spiketrain data shard DIR OUT")
    if options.shard_mb < 1:
        raise UserError(f"--shard-mb must be at least 1, not {options.shard_mb}")
    folder = Path(options.name) if Path(options.name).is_dir() else root / options.name
    for part, count in imagenet.shard(folder, Path(options.to), options.shard_mb * 1_000_000):
        print(f"{options.to}: {count:,} shards of the {part} part")
    return 0
