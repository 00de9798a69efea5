"""How event data sets lie on disk, and how their files are divided into training and test.

A finder takes the folder that holds a set and returns its files by part: {"train": …, "test": …} where the set itself says which is
which, {"all": …} where a rule has to. Files are always in natural order of their names (`natural`: runs of digits
compare as numbers, cat_2 before cat_10), never in that of the file system, so every machine gets the same split.
"""

import csv
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from spiketrain.data.framing import Source
from spiketrain.errors import UserError, unknown
from spiketrain.files import read_bytes

Parts = dict[str, list[Source]]
SUFFIXES = (".aedat4", ".aedat", ".bin", ".dat", ".raw", ".npz", ".npy", ".mat", ".h5", ".hdf5")


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorting key: runs of digits as numbers, all else letter by letter. 'a2' < 'a10' < 'b1'."""
    return tuple((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.findall(r"\d+|\D", name))


def folders(base: Path) -> dict[str, Path]:
    """Visible folders in `base` by lower-case name."""
    if not base.is_dir():
        return {}
    return {f.name.lower(): f for f in sorted(base.iterdir()) if f.is_dir() and not f.name.startswith(".")}


def recordings(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """The recordings directly in `folder`, in natural order."""
    files = [f for f in folder.iterdir() if f.suffix.lower() in suffixes and not f.name.startswith(".")]
    return sorted(files, key=lambda f: (natural(f.name), f.name))


def by_class(base: Path, classes: Sequence[str], prefix: str = "") -> list[Source]:
    """One subfolder a class; an error that lists the missing ones if only some are there. Empty if none is."""
    there = folders(base)
    missing = [name for name in classes if name.lower() not in there]
    if len(missing) == len(classes):
        return []
    if missing:
        raise UserError(f"{base}: {len(missing)} of {len(classes)} class folders are missing: {', '.join(missing[:5])} …")
    found: list[Source] = []
    for label, name in enumerate(classes):
        files = recordings(there[name.lower()])
        if not files:
            raise UserError(f"{there[name.lower()]}: no recording in it ({' '.join(SUFFIXES)})")
        found += [Source(f, f"{prefix}{name}/{f.name}", label) for f in files]
    return found


def class_folders(*names: str) -> Callable[[Path, Sequence[str]], Parts]:
    """Finder: `<class>/*` under the first of the places `names` (under the root) that has any."""

    def find(root: Path, classes: Sequence[str]) -> Parts:
        for name in names:
            found = by_class(root / name, classes)
            if found:
                return {"all": found}
        return {}

    return find


def part_folders(
    names: Sequence[str], pairs: Sequence[tuple[str, str]] = (("train", "test"),)
) -> Callable[[Path, Sequence[str]], Parts]:
    """Finder: `<train>/<class>/*` and `<test>/<class>/*`, with the folder names of `pairs` (upper and lower case alike)."""

    def find(root: Path, classes: Sequence[str]) -> Parts:
        for name in names:
            there = folders(root / name)
            for train, test in pairs:
                if train in there and test in there:
                    parts = {p: by_class(there[f], classes, f"{p}/") for p, f in (("train", train), ("test", test))}
                    if all(parts.values()):
                        return parts
        return {}

    return find


def gesture_npy(*names: str) -> Callable[[Path, Sequence[str]], Parts]:
    """Finder: tonic's DVS-Gesture, `ibmGestureTrain/<user and light>/<label>.npy` and `ibmGestureTest/…`."""

    def part(base: Path, count: int) -> list[Source]:
        found = []
        for user in sorted(folders(base).values(), key=lambda f: natural(f.name)):
            for file in recordings(user, (".npy",)):
                if not file.stem.isdecimal() or int(file.stem) >= count:
                    raise UserError(f"{file}: a file named by its label, 0 to {count - 1}, is expected here")
                found.append(Source(file, f"{base.name}/{user.name}/{file.name}", int(file.stem)))
        return found

    def find(root: Path, classes: Sequence[str]) -> Parts:
        for name in names:
            parts = {p: part(root / name / f"ibmGesture{p.title()}", len(classes)) for p in ("train", "test")}
            if all(parts.values()):
                return parts
        return {}

    return find


def gesture_aedat(*names: str) -> Callable[[Path, Sequence[str]], Parts]:
    """Finder: DVS-Gesture as distributed: long recordings `userNN_light.aedat`, `userNN_light_labels.csv` with class (from
    1), start and end in µs, and `trials_to_train.txt`, `trials_to_test.txt`, which list the recordings of each part."""

    def find(root: Path, classes: Sequence[str]) -> Parts:
        for name in names:
            base = root / name
            lists = {p: base / f"trials_to_{p}.txt" for p in ("train", "test")}
            if all(f.is_file() for f in lists.values()):
                return {p: [_trial(base / Path(line.strip()).name, len(classes)) for line in _lines(f)] for p, f in lists.items()}
        return {}

    return find


def _lines(file: Path) -> list[str]:
    text = read_bytes(file, 16 << 20, "list of recordings").decode("utf-8", "replace")
    return [line for line in text.splitlines() if line.strip()]


def _trial(file: Path, count: int) -> Source:
    if file.name in ("", "..") or len(file.name) > 255:
        raise UserError(f"{file.parent}: its lists name {str(file)[-80:]!r}, which is no recording")
    table = file.with_name(f"{file.stem}_labels.csv")
    if not table.is_file():
        raise UserError(f"{table}: not found; it holds the labels of {file.name}")
    spans = []
    for number, row in enumerate(csv.reader(_lines(table)[1:]), start=2):
        try:
            label, start, stop = (int(cell) for cell in row[:3])
        except ValueError:
            raise UserError(f"{table}: line {number}: class,startTime_usec,endTime_usec expected, got {','.join(row)!r}") from None
        if not 1 <= label <= count or stop <= start:
            raise UserError(f"{table}: line {number}: class 1 to {count} and start < end expected, got {','.join(row)!r}")
        spans.append((label - 1, start, stop))
    if not spans:
        raise UserError(f"{table}: no labels in it")
    return Source(file, file.name, spans[0][0], tuple(spans))


def first_share(files: Sequence[Source], share: float) -> tuple[list[Source], list[Source]]:
    """Of each class the first round(share·n) files in natural order train, the rest test: the older benchmark's rule."""
    return _divide(files, lambda of_class: of_class, lambda n: round(share * n))


def lexical_share(files: Sequence[Source], share: float) -> tuple[list[Source], list[Source]]:
    """The first ⌈share·n⌉ of each class in the order of letters (x_10 before x_2): SpikingJelly's unshuffled split."""
    return _divide(files, lambda of_class: sorted(of_class, key=lambda s: s.name), lambda n: math.ceil(share * n))


def hashed_share(files: Sequence[Source], share: float) -> tuple[list[Source], list[Source]]:
    """The first round(share·n) of each class in the order of the SHA-256 of "label/position": random, the same for everybody.

    The position is the one in natural order, so that a repackaged set with other file names gets the same split.
    """

    def shuffled(of_class: list[Source]) -> list[Source]:
        keys = [hashlib.sha256(f"{s.label}/{i}".encode()).hexdigest() for i, s in enumerate(of_class)]
        return [source for _, source in sorted(zip(keys, of_class, strict=True), key=lambda pair: pair[0])]

    return _divide(files, shuffled, lambda n: round(share * n))


RULES = {"portion-0.9": first_share, "lexical-0.9": lexical_share, "random-0.9": hashed_share}
"""Rules for sets that do not say themselves what is the test set."""


def divide(parts: Parts, rule: str, name: str) -> tuple[list[Source], list[Source]]:
    """Training and test files by a rule's name; parts that the set itself gives stay as they are ("official")."""
    if "train" in parts:
        return parts["train"], parts["test"]
    if rule not in RULES:
        raise unknown(f"split of {name}", rule, RULES)
    train, test = RULES[rule](parts["all"], float(rule.rsplit("-", 1)[1]))
    if not train or not test:
        raise UserError(f"data set {name}: split {rule} of {len(parts['all'])} files leaves one part empty")
    return train, test


def _divide(
    files: Sequence[Source], order: Callable[[list[Source]], list[Source]], count: Callable[[int], int]
) -> tuple[list[Source], list[Source]]:
    train: list[Source] = []
    test: list[Source] = []
    for label in sorted({s.label for s in files}):
        of_class = order([s for s in files if s.label == label])
        cut = count(len(of_class))
        train += of_class[:cut]
        test += of_class[cut:]
    return train, test
