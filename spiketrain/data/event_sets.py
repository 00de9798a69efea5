"""Event data sets by name: where each comes from, how it lies on disk, how it is split; `load` gives its frames.

An entry's first split is its default. `portion-0.9` is the older benchmark's: of each class, the first nine tenths of the
files in natural order train and the rest tests. `lexical-0.9` and `random-0.9` are explained in `event_layouts`.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spiketrain.data.cache import cache_root, cached, locked
from spiketrain.data.event_layouts import (
    Parts,
    class_folders,
    divide,
    folders,
    gesture_aedat,
    gesture_npy,
    natural,
    part_folders,
)
from spiketrain.data.events import Size
from spiketrain.data.fetch import Archive, fetch
from spiketrain.data.framing import Framing, Source
from spiketrain.data.simulate import Camera, simulate_set
from spiketrain.data.types import DataSet
from spiketrain.errors import UserError, unknown
from spiketrain.files import read_json

Finder = Callable[[Path, Sequence[str]], Parts]
THIRDS = ("portion-0.9", "lexical-0.9", "random-0.9")


@dataclass(frozen=True)
class EventSet:
    """One data set. `layouts` says, for people, where its files may lie under the root; `finders` look there.

    `sensor` is (width, height); None: each recording has its own. `cut` cuts recordings into samples of so many µs.
    `archives` are the published files with their MD5s; those with an address can be fetched and unpacked to the
    folder `home` on request. `page` is where to get it by hand.
    """

    name: str
    title: str
    page: str
    licence: str
    citation: str
    sensor: Size | None
    classes: tuple[str, ...]
    layouts: tuple[str, ...]
    splits: tuple[str, ...]
    finders: tuple[Finder, ...]
    cut: int | None = None
    archives: tuple[Archive, ...] = ()
    home: str = ""


CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple("0123456789")
GESTURES = (
    "hand_clapping",
    "right_hand_wave",
    "left_hand_wave",
    "right_arm_clockwise",
    "right_arm_counter_clockwise",
    "left_arm_clockwise",
    "left_arm_counter_clockwise",
    "arm_roll",
    "air_drums",
    "air_guitar",
    "other_gestures",
)
BACKGROUND = "BACKGROUND_Google"
_CALTECH_OBJECTS = """
    Faces_easy Leopards Motorbikes accordion airplanes anchor ant barrel bass beaver binocular bonsai brain brontosaurus buddha
    butterfly camera cannon car_side ceiling_fan cellphone chair chandelier cougar_body cougar_face crab crayfish crocodile
    crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar elephant emu euphonium ewer ferry flamingo
    flamingo_head garfield gerenuk gramophone grand_piano hawksbill headphone hedgehog helicopter ibis inline_skate
    joshua_tree kangaroo ketch lamp laptop llama lobster lotus mandolin mayfly menorah metronome minaret nautilus octopus okapi
    pagoda panda pigeon pizza platypus pyramid revolver rhino rooster saxophone schooner scissors scorpion sea_horse snoopy
    soccer_ball stapler starfish stegosaurus stop_sign strawberry sunflower tick trilobite umbrella watch water_lilly
    wheelchair wild_cat windsor_chair wrench yin_yang"""
CALTECH = (BACKGROUND, *_CALTECH_OBJECTS.split())
OBJECTS = {"box": "Caixa", "mug": "Caneca", "cutter": "Estilete", "pencil": "Lapiseira", "scissors": "Tesoura"}


def _sessions(root: Path, classes: Sequence[str]) -> Parts:
    """Finder of dvs128-objects: session 1 in DataSet2/, session 2 in NeuromorphicObjectDataSet_100/aedatFiles/."""
    for base in (root, root / "dvs128_objects"):
        places = {"train": base / "DataSet2", "test": base / "NeuromorphicObjectDataSet_100" / "aedatFiles"}
        if all(place.is_dir() for place in places.values()):
            return {part: [_object(place, i, c) for i, c in enumerate(classes)] for part, place in places.items()}
    return {}


def _object(place: Path, label: int, name: str) -> Source:
    file = place / f"{OBJECTS[name]}.aedat"
    return Source(file, f"{place.name}/{file.name}", label)


MENDELEY = "https://data.mendeley.com/public-files/datasets/{}/files/{}/file_downloaded"

SETS = {entry.name: entry for entry in (
    EventSet(
        "dvsc10", "CIFAR10-DVS", "https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671", "CC BY 4.0, as far as known",
        "H. Li, H. Liu, X. Ji, G. Li, L. Shi: CIFAR10-DVS, Frontiers in Neuroscience 11:309, 2017",
        (128, 128), CIFAR,
        ("DVS/DVS_Cifar10/CIFAR10DVS/<class>/*.aedat4", "CIFAR10DVS/<class>/*.aedat4", "CIFAR10-DVS/<class>/*.aedat",
         "events_np/<class>/*.npz"),
        THIRDS,
        (class_folders("DVS/DVS_Cifar10/CIFAR10DVS", "DVS_Cifar10/CIFAR10DVS", "CIFAR10DVS", "CIFAR10-DVS", "CIFAR10-DVS/extract",
                       "CIFAR10DVS/extract", "extract", "events_np", "."),),
        archives=(
            Archive("airplane.zip", "0afd5c4bf9ae06af762a77b180354fdd", "https://ndownloader.figshare.com/files/7712788"),
            Archive("automobile.zip", "8438dfeba3bc970c94962d995b1b9bdd", "https://ndownloader.figshare.com/files/7712791"),
            Archive("bird.zip", "a9c207c91c55b9dc2002dc21c684d785", "https://ndownloader.figshare.com/files/7712794"),
            Archive("cat.zip", "52c63c677c2b15fa5146a8daf4d56687", "https://ndownloader.figshare.com/files/7712812"),
            Archive("deer.zip", "b6bf21f6c04d21ba4e23fc3e36c8a4a3", "https://ndownloader.figshare.com/files/7712815"),
            Archive("dog.zip", "f379ebdf6703d16e0a690782e62639c3", "https://ndownloader.figshare.com/files/7712818"),
            Archive("frog.zip", "cad6ed91214b1c7388a5f6ee56d08803", "https://ndownloader.figshare.com/files/7712842"),
            Archive("horse.zip", "e7cbbf77bec584ffbf913f00e682782a", "https://ndownloader.figshare.com/files/7712851"),
            Archive("ship.zip", "41c7bd7d6b251be82557c6cce9a7d5c9", "https://ndownloader.figshare.com/files/7712836"),
            Archive("truck.zip", "89f3922fd147d9aeff89e76a2b0b70a7", "https://ndownloader.figshare.com/files/7712839"),
        ),
        home="CIFAR10-DVS",
    ),
    EventSet(
        "dvsg", "DVS128 Gesture", "https://research.ibm.com/interactive/dvsgesture/", "CC BY 4.0, as far as known; see the page",
        "A. Amir et al.: A Low Power, Fully Event-Based Gesture Recognition System, CVPR 2017",
        (128, 128), GESTURES,
        ("DVS/DVSGesture/DVSGesture/ibmGestureTrain/<user>/<label>.npy and ibmGestureTest/…",
         "DvsGesture/*.aedat with *_labels.csv and trials_to_train.txt, trials_to_test.txt",
         "events_np/train/<0 to 10>/*.npz and events_np/test/…"),
        ("official", "official-10"),
        (gesture_npy("DVS/DVSGesture/DVSGesture", "DVSGesture", "DVS/DVSGesture", "."),
         gesture_aedat("DvsGesture", "DVS/DVSGesture/DvsGesture", "DVSGesture", "DVSGesture/DvsGesture", "extract/DvsGesture",
                       "DVS128Gesture/extract/DvsGesture", "."),
         lambda root, classes: part_folders(("events_np", "DVS128Gesture/events_np", "."))(
             root, [str(i) for i in range(len(classes))])),
        archives=(
            Archive("DvsGesture.tar.gz", "8a5c71fb11e24e5ca5b11866ca6c00a1"),
            Archive("ibmGestureTrain.tar.gz", "3a8f0d4120a166bac7591f77409cb105", "https://figshare.com/ndownloader/files/38022171"),
            Archive("ibmGestureTest.tar.gz", "56070e45dadaa85fff82e0fbfbc06de5", "https://figshare.com/ndownloader/files/38020584"),
        ),
        home="DVSGesture",
    ),
    EventSet(
        "NCALTECH101", "N-Caltech101", "https://www.garrickorchard.com/datasets/n-caltech101", "CC BY 4.0, as far as known; see the page",
        "G. Orchard, A. Jayawant, G. Cohen, N. Thakor: Converting Static Image Datasets to Spiking Neuromorphic Datasets "
        "Using Saccades, Frontiers in Neuroscience 9:437, 2015",
        None, CALTECH,
        ("DVS/NCALTECH101/NCALTECH101/Caltech101/<class>/*.bin", "N-Caltech101/Caltech101/<class>/*.bin", "Caltech101/<class>/*.bin"),
        (*THIRDS, *(f"{split}-objects" for split in THIRDS)),
        (class_folders("DVS/NCALTECH101/NCALTECH101/Caltech101", "NCALTECH101/Caltech101", "N-Caltech101/Caltech101",
                       "N-Caltech101", "Caltech101", "extract/Caltech101", "events_np", "."),),
        archives=(Archive("Caltech101.zip", "66201824eabb0239c7ab992480b50ba3",
                          MENDELEY.format("cy6cvx3ryv", "36b5c52a-b49d-4853-addb-a836a8883e49")),),
        home="N-Caltech101",
    ),
    EventSet(
        "nmnist", "N-MNIST", "https://www.garrickorchard.com/datasets/n-mnist", "CC BY-SA 4.0, as far as known; see the page",
        "G. Orchard, A. Jayawant, G. Cohen, N. Thakor: Converting Static Image Datasets to Spiking Neuromorphic Datasets "
        "Using Saccades, Frontiers in Neuroscience 9:437, 2015",
        (34, 34), DIGITS,
        ("DVS/N-MNIST/NMNIST/Train/<0 to 9>/*.bin and Test/…", "NMNIST/Train/…", "N-MNIST/Train/…"),
        ("official",),
        (part_folders(("DVS/N-MNIST/NMNIST", "NMNIST", "N-MNIST", "N-MNIST/extract", "extract", "events_np", ".")),),
        archives=(
            Archive("Train.zip", "20959b8e626244a1b502305a9e6e2031", MENDELEY.format("468j46mzdv", "39c25547-014b-4137-a934-9d29fa53c7a0")),
            Archive("Test.zip", "69ca8762b2fe404d9b9bad1103e97832", MENDELEY.format("468j46mzdv", "05a4d654-7e03-4c15-bdfa-9bb2bcbea494")),
        ),
        home="N-MNIST",
    ),
    EventSet(
        "ncars", "N-CARS", "https://www.prophesee.ai/2018/03/13/dataset-n-cars/", "Prophesee's own; see the page",
        "A. Sironi et al.: HATS: Histograms of Averaged Time Surfaces for Robust Event-based Object Classification, CVPR 2018",
        (120, 100), ("background", "cars"),
        ("n-cars_train/<background, cars>/*.dat and n-cars_test/…", "DVS/NCARS/NCARS/ncars-train/…", "NCARS/train/…"),
        ("official",),
        (part_folders(("DVS/NCARS/NCARS", "NCARS", "Prophesee_Dataset_n_cars", "n-cars", "."),
                      (("n-cars_train", "n-cars_test"), ("ncars-train", "ncars-test"), ("train", "test"))),),
        archives=(Archive("Prophesee_Dataset_n_cars.zip", "553ce464d6e5e617b3c21ce27c19368e"),),
    ),
    EventSet(
        "dvs128-objects", "DVS128 objects, two sessions", "BioLab, Federal University of Uberlândia", "none stated",
        "BioLab, Federal University of Uberlândia: neuromorphic object recordings with a DVS128",
        (128, 128), tuple(OBJECTS),
        ("DataSet2/*.aedat and NeuromorphicObjectDataSet_100/aedatFiles/*.aedat",),
        ("session-1-2", "session-2-1"), (_sessions,), cut=200_000,
    ),
    EventSet(
        "digits_dvs", "scikit-learn's digits before a simulated event camera", "simulated here: nothing to download", "CC BY 4.0",
        "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998",
        (34, 34), DIGITS, ("made on first use",), ("index-mod-5",), (part_folders((".",)),),
    ),
)}  # fmt: skip
"""Every event data set by its name."""


def load(
    name: str,
    root: str | Path,
    *,
    steps: int = 10,
    size: int | Size | None = 48,
    split: str | None = None,
    by: str = "time",
    window: int | None = None,
    kind: str = "sum",
    resize: str = "events",
    sensor: Size | None = None,
    cut: int | None = None,
    cache: str | Path | None = None,
    workers: int = 0,
    download: bool = False,
) -> DataSet:
    """The frames `[N,T,2,H,W]` of a data set, from the frame cache; the first call builds it.

    `name` is one of `SETS`, or a folder (under `root` or anywhere) of recordings: one subfolder a class, or train/ and test/
    with one subfolder a class each. `split` is one of the entry's (default: its first). `steps`, `size`, `by`, `window`,
    `kind` and `resize` are those of `to_frames`; `sensor` and `cut` override the entry's. `cache` is where the cache goes
    (default: environment SPIKETRAIN_CACHE, else `root/.spiketrain-cache`). `download` fetches a set that is absent, where it
    has a public address.

    Inputs are uint8, or int16 where a count exceeds 255, or float32 for time surfaces and bilinear frames.
    Raises `UserError` where the data are absent (what to get, from which page, where to put it) or damaged.
    """
    entry, train, test, classes, rule = files(name, root, split, cache, workers, download)
    framing = Framing(steps, size, by, window, kind, resize, sensor or entry.sensor, cut or entry.cut)
    folder = cache_root(Path(root), cache)
    parts = [
        cached(sources, framing, folder, f"{entry.name}-{part}", f"{rule} {part}", workers)
        for part, sources in (("train", train), ("test", test))
    ]
    return DataSet(entry.name, parts[0], parts[1], classes, split_rule=rule)


Files = tuple[EventSet, list[Source], list[Source], tuple[str, ...], str]


def files(
    name: str, root: str | Path, split: str | None = None, cache: str | Path | None = None, workers: int = 0, download: bool = False
) -> Files:
    """The entry, its training files, its test files, the classes, and the split's name; arguments and errors as `load`."""
    entry, place = _entry(name, Path(root))
    rule = split or entry.splits[0]
    if rule not in entry.splits:
        raise unknown(f"split of {name}", rule, entry.splits)
    if entry.name == "digits_dvs":
        place = digits(cache_root(Path(root), cache), workers)
    train, test, classes = _divided(entry, _find(entry, place, download), rule)
    return entry, train, test, classes, rule


def known(name: str, root: str | Path = ".") -> bool:
    """True where `load` would know the name: an entry, or a folder."""
    return name in SETS or Path(name).is_dir() or (Path(root) / name).is_dir()


def _entry(name: str, root: Path) -> tuple[EventSet, Path]:
    """The entry and the folder to look in; a folder of recordings gets an entry made for it."""
    if name in SETS:
        return SETS[name], root
    for place in (Path(name), root / name):
        if place.is_dir():
            return _folder_entry(place), place
    raise unknown("event data set", name, [*SETS, "a folder of recordings"])


def _folder_entry(place: Path) -> EventSet:
    there = folders(place)
    parts = "train" in there and "test" in there
    names = folders(there["train"] if parts else place).values()
    classes = tuple(sorted((f.name for f in names), key=natural))
    if not classes:
        raise UserError(f"{place}: no subfolders: one a class is expected, or train/ and test/ with one a class each")
    return EventSet(
        place.resolve().name,
        f"recordings in {place}",
        str(place),
        "the owner's",
        "",
        _stated_sensor(place / "recordings.json"),
        classes,
        ("<class>/*", "train/<class>/* and test/<class>/*"),
        ("official",) if parts else THIRDS,
        (part_folders((".",)),) if parts else (class_folders("."),),
    )


def _stated_sensor(file: Path) -> Size | None:
    """What `simulate_set` wrote beside its recordings; a format like ATIS has no place for it."""
    if not file.is_file():
        return None
    try:
        width, height = read_json(file, "description of recordings", 1 << 20)["sensor"]
        if type(width) is not int or type(height) is not int or not 0 < min(width, height) <= max(width, height) <= 1 << 14:
            raise ValueError
        return width, height
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{file}: {{"sensor": [width, height]}} expected') from None


def _find(entry: EventSet, place: Path, download: bool) -> Parts:
    parts = _look(entry, place)
    public = [archive for archive in entry.archives if archive.url]
    if not parts and download and public:
        fetch(public, place / entry.home)
        parts = _look(entry, place)
    if parts:
        return parts
    wanted = ", or ".join(f"{place}/{layout}" for layout in entry.layouts)
    how = f"get it from {entry.page} and unpack it to {wanted}"
    if public and not download:
        how += ", or add --download"
    if download and not public:
        how = f"it has no public address to fetch it from: {how}"
    raise UserError(f"data set {entry.name} ({entry.title}) is not in {place}: {how}")


def _look(entry: EventSet, place: Path) -> Parts:
    for finder in entry.finders:
        parts = finder(place, entry.classes)
        if parts:
            return parts
    return {}


def _divided(entry: EventSet, parts: Parts, rule: str) -> tuple[list[Source], list[Source], tuple[str, ...]]:
    """Training and test files and the classes that they have under this rule."""
    classes = entry.classes
    if rule == "session-2-1":
        parts = {"train": parts["test"], "test": parts["train"]}
    if rule == "official-10":  # without the eleventh class, "other gestures"
        classes = classes[:-1]
        parts = {part: _first_classes(sources, len(classes)) for part, sources in parts.items()}
    if rule.endswith("-objects"):  # the 100 classes that are objects: what the older benchmark's tables count
        classes = classes[1:]
        parts = {"all": [replace(s, label=s.label - 1) for s in parts["all"] if s.label > 0]}
    return *divide(parts, rule.removesuffix("-objects"), entry.name), classes


def _first_classes(sources: list[Source], count: int) -> list[Source]:
    """Without the samples, of files and of spans in files, whose label is `count` or more."""
    kept = []
    for source in sources:
        spans = tuple(span for span in source.spans if span[0] < count)
        if spans or (not source.spans and source.label < count):
            kept.append(replace(source, label=spans[0][0] if spans else source.label, spans=spans))
    return kept


DIGITS_CAMERA = Camera(zoom=3.5)  # 8 × 8 → 28 × 28 pixels on a sensor of 34 × 34, as N-MNIST has them


def digits(folder: Path, workers: int = 0) -> Path:
    """The folder of `digits_dvs`, simulated into `folder` first if it is not there (seconds). Index % 5 == 4 is test."""
    done = folder / "digits_dvs-recordings-1"
    if not done.exists():
        with locked(done):
            if not done.exists():
                _make_digits(done, workers)
    return done


def _make_digits(done: Path, workers: int) -> None:
    images, labels = _digit_images()
    test = np.arange(len(labels)) % 5 == 4
    half = done.with_name(done.name + ".part")
    shutil.rmtree(half, ignore_errors=True)
    for part, chosen in (("train", ~test), ("test", test)):
        simulate_set(images[chosen], labels[chosen], DIGITS, half, part, camera=DIGITS_CAMERA, workers=workers)
    os.rename(half, done)


def _digit_images() -> tuple[NDArray[np.uint8], NDArray[Any]]:
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    except ImportError:
        raise UserError("digits_dvs needs scikit-learn's digits: pip install scikit-learn") from None
    flat, labels = load_digits(return_X_y=True)
    return (flat.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8), labels
