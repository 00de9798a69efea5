"""Event data sets by name: layouts, splits, labels, and one clear line where something is not as it should be."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from spiketrain.data.event_layouts import RULES, natural
from spiketrain.data.event_sets import CALTECH, CIFAR, GESTURES, SETS, files, known, load
from spiketrain.data.events import to_frames
from spiketrain.data.framing import Source
from spiketrain.data.readers import read
from spiketrain.data.readers.write import write_bin
from spiketrain.data.show import info, show
from spiketrain.data.types import EVENT, Recording
from spiketrain.errors import UserError


@pytest.fixture(autouse=True)
def no_cache_elsewhere(monkeypatch):
    monkeypatch.delenv("SPIKETRAIN_CACHE", raising=False)


def recording(seed, n=60, size=(30, 20), start=0, length=50_000):
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT)
    events["t"] = np.sort(rng.integers(0, length, n)) + start
    events["x"], events["y"], events["p"] = rng.integers(0, size[0], n), rng.integers(0, size[1], n), rng.integers(0, 2, n)
    return Recording(events, size)


def fill(folder, names, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        write_bin(folder / name, recording(seed + i))


def touch(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def write_aedat31(path, events):
    """An AEDAT 3.1 file of one packet of polarity events."""
    data = np.zeros(len(events), [("address", "<u4"), ("t", "<i4")])
    polarity, y, x = (events[name].astype(np.uint32) for name in "pyx")
    data["address"], data["t"] = 1 | polarity << 1 | y << 2 | x << 17, events["t"]
    n = len(events)
    head = np.array([1, 1], "<i2").tobytes() + np.array([8, 4, 0, n, n, n], "<i4").tobytes()
    path.write_bytes(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n" + head + data.tobytes())


def test_natural_order():
    assert sorted(["cat_10", "cat_2", "cat_1", "Cat_3"], key=natural) == ["Cat_3", "cat_1", "cat_2", "cat_10"]
    assert sorted(["10", "9", "1"], key=natural) == ["1", "9", "10"]


@pytest.mark.parametrize("place", ["DVS/DVS_Cifar10/CIFAR10DVS", "CIFAR10-DVS", "."])
@pytest.mark.parametrize("name", ["cifar10_{0}_{1}.aedat", "{0}_{1}.aedat4"])
def test_dvsc10_splits_do_not_depend_on_the_file_system_or_the_packaging(tmp_path, place, name):
    for c in reversed(CIFAR):
        touch(tmp_path / place / c, [name.format(c, i) for i in np.random.default_rng(0).permutation(20)])
    number = lambda s: int(s.path.stem.rsplit("_", 1)[1])  # noqa: E731
    for rule, test_numbers in (("portion-0.9", [18, 19]), ("lexical-0.9", [8, 9]), ("random-0.9", None)):
        entry, train, test, classes, used = files("dvsc10", tmp_path, rule)
        assert (entry.name, classes, used) == ("dvsc10", CIFAR, rule)
        assert len(train) == 180 and len(test) == 20 and not {s.path for s in train} & {s.path for s in test}
        assert all(s.path.parent.name == CIFAR[s.label] for s in train + test)
        cats = [number(s) for s in test if s.label == 3]
        assert cats == (test_numbers or RANDOM_CATS)
    assert files("dvsc10", tmp_path)[4] == "portion-0.9"


RANDOM_CATS = [5, 12]  # for ever: a split is a rule


def test_incomplete_sets_are_errors(tmp_path):
    for c in CIFAR[:8]:
        touch(tmp_path / "CIFAR10DVS" / c, ["a_1.aedat4"])
    with pytest.raises(UserError, match="2 of 10 class folders are missing: ship, truck"):
        files("dvsc10", tmp_path)
    for c in CIFAR[8:]:
        (tmp_path / "CIFAR10DVS" / c).mkdir()
    with pytest.raises(UserError, match="ship: no recording in it"):
        files("dvsc10", tmp_path)


@pytest.mark.parametrize("name", [n for n in SETS if n != "digits_dvs"])
def test_an_absent_set_says_what_to_get_and_where_to_put_it(tmp_path, name):
    with pytest.raises(UserError) as error:
        load(name, tmp_path)
    text = str(error.value)
    assert SETS[name].page in text and str(tmp_path) in text and "\n" not in text


def test_unknown_names(tmp_path):
    with pytest.raises(UserError, match="did you mean 'dvsc10'"):
        load("dvsc", tmp_path)
    with pytest.raises(UserError, match=r"unknown split of digits_dvs 'official'.*index-mod-5"):
        load("digits_dvs", tmp_path, split="official")
    assert known("dvsg") and not known("dvsx", tmp_path)


@pytest.mark.parametrize("entry", SETS.values(), ids=list(SETS))
def test_entries_are_complete(entry):
    assert SETS[entry.name] is entry
    for value in (entry.title, entry.page, entry.licence, entry.citation, entry.classes, entry.layouts, entry.splits):
        assert value
    assert len(set(entry.classes)) == len(entry.classes)
    assert all(len(archive.md5) == 32 for archive in entry.archives)


def test_ncaltech101_has_101_classes_or_its_100_objects(tmp_path):
    assert len(CALTECH) == 101
    for i, c in enumerate(CALTECH):
        fill(tmp_path / "DVS/NCALTECH101/NCALTECH101/Caltech101" / c, ["image_0001.bin", "image_0002.bin"], i)
    with pytest.raises(UserError, match="leaves one part empty"):
        files("NCALTECH101", tmp_path)
    for i, c in enumerate(CALTECH):
        fill(tmp_path / "DVS/NCALTECH101/NCALTECH101/Caltech101" / c, [f"image_{k:04d}.bin" for k in range(1, 8)], i)
    _, train, test, classes, _ = files("NCALTECH101", tmp_path)
    assert (len(train), len(test), len(classes)) == (606, 101, 101)
    _, train, test, classes, rule = files("NCALTECH101", tmp_path, "portion-0.9-objects")
    assert (len(train), len(test), len(classes), rule) == (600, 100, 100, "portion-0.9-objects")
    assert "BACKGROUND_Google" not in classes and sorted({s.label for s in test}) == list(range(100))
    assert all(s.path.parent.name == classes[s.label] for s in train)
    data = load("NCALTECH101", tmp_path, steps=3, split="portion-0.9-objects")
    events = read(train[5].path).events
    own = (int(events["x"].max()) + 1, int(events["y"].max()) + 1)
    assert np.array_equal(data.train.inputs[5].numpy(), to_frames(events, 3, own, out_size=48))
    assert data.split_rule == "portion-0.9-objects" and len(data.classes) == 100


def gesture_npy(root, users, part):
    for user in users:
        folder = root / f"DVS/DVSGesture/DVSGesture/ibmGesture{part}" / f"user{user:02d}_led"
        folder.mkdir(parents=True)
        for label in range(11):
            events = recording(label, size=(128, 128), start=1_000_000).events
            np.save(folder / f"{label}.npy", np.stack([events[c] // (1000 if c == "t" else 1) for c in "xypt"], 1))


def test_dvsg_as_npy(tmp_path):
    gesture_npy(tmp_path, (1, 2, 10), "Train")
    gesture_npy(tmp_path, (24,), "Test")
    data = load("dvsg", tmp_path, steps=4)
    assert len(data.train) == 33 and len(data.test) == 11 and data.split_rule == "official"
    assert data.train.labels[:11].tolist() == list(range(11)) and data.classes == GESTURES
    assert data.train.inputs.shape == (33, 4, 2, 48, 48) and data.train.inputs.sum() > 0
    ten = load("dvsg", tmp_path, steps=4, split="official-10")
    assert len(ten.train) == 30 and len(ten.classes) == 10 and ten.train.labels.max() == 9


def test_dvsg_as_aedat_with_labels(tmp_path):
    base = tmp_path / "DvsGesture"
    base.mkdir()
    for part, user in (("train", "user01_led"), ("test", "user24_led")):
        (base / f"trials_to_{part}.txt").write_text(f"{user}.aedat\n\n")
        write_aedat31(base / f"{user}.aedat", recording(1, 4000, (128, 128), length=1_000_000).events)
        rows = "1,100000,200000\n8,300000,420000\n8,450000,500000\n11,700000,900000\n"
        (base / f"{user}_labels.csv").write_text("class,startTime_usec,endTime_usec\n" + rows)
    data = load("dvsg", tmp_path, steps=4, size=None)
    assert data.train.labels.tolist() == [0, 7, 7, 10]
    events = read(base / "user01_led.aedat").events
    second = events[(events["t"] >= 300_000) & (events["t"] < 420_000)]
    assert np.array_equal(data.train.inputs[1].numpy(), to_frames(second, 4, (128, 128)))
    assert load("dvsg", tmp_path, steps=4, split="official-10").test.labels.tolist() == [0, 7, 7]
    (base / "user01_led_labels.csv").write_text("class,startTime_usec,endTime_usec\n12,1,2\n")
    with pytest.raises(UserError, match=r"user01_led_labels\.csv: line 2: class 1 to 11"):
        load("dvsg", tmp_path, steps=4)


def test_nmnist_and_ncars_layouts(tmp_path):
    for part in ("Train", "Test"):
        for digit in range(10):
            fill(tmp_path / "DVS/N-MNIST/NMNIST" / part / str(digit), ["00002.bin", "00010.bin", "00001.bin"], digit)
    data = load("nmnist", tmp_path, steps=3, size=None)
    assert data.train.inputs.shape == (30, 3, 2, 34, 34) and data.train.labels.tolist() == [d for d in range(10) for _ in "abc"]
    assert [s.path.name for s in files("nmnist", tmp_path)[1][:3]] == ["00001.bin", "00002.bin", "00010.bin"]
    for part in ("train", "test"):
        for name in ("cars", "background"):
            touch(tmp_path / f"n-cars_{part}" / name, ["obj_1_td.dat"])
    _, train, test, classes, rule = files("ncars", tmp_path)
    assert classes == ("background", "cars") and [s.label for s in train + test] == [0, 1, 0, 1] and rule == "official"


def test_any_folder(tmp_path):
    for c in ("left", "right"):
        fill(tmp_path / "mine" / c, [f"{i}.bin" for i in range(12)])
    data = load("mine", tmp_path, steps=2, size=16)
    assert (len(data.train), len(data.test), data.classes, data.split_rule) == (22, 2, ("left", "right"), "portion-0.9")
    assert [s.path.name for s in files(str(tmp_path / "mine"), ".")[2]] == ["11.bin", "11.bin"]
    for part in ("train", "test"):
        for c in ("class10", "class9"):
            fill(tmp_path / "parted" / part / c, ["a.bin"])
    data = load("parted", tmp_path, steps=2, size=16, sensor=(30, 20))
    assert data.classes == ("class9", "class10") and data.split_rule == "official" and len(data.test) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no subfolders"):
        load("empty", tmp_path)


def test_rules_are_exact():
    sources = [Source(Path(f"{i}"), f"c/f_{i}", label) for label in (0, 1) for i in range(7 + 8 * label)]
    for rule in RULES.values():
        train, test = rule(sources, 0.9)
        assert sorted(s.name for s in train + test) == sorted(s.name for s in sources)
        assert [sum(s.label == label for s in train) for label in (0, 1)] == [6 if rule is not RULES["lexical-0.9"] else 7, 14]


def test_digits_dvs_needs_nothing(tmp_path):
    data = load("digits_dvs", tmp_path, steps=5, size=None)
    assert data.train.inputs.shape == (1438, 5, 2, 34, 34) and data.test.inputs.shape == (359, 5, 2, 34, 34)
    assert data.train.inputs.dtype == torch.uint8 and data.split_rule == "index-mod-5"
    assert data.train.labels.bincount(minlength=10).min() > 100
    again = load("digits_dvs", tmp_path / "other", steps=5, size=None)
    assert again.train.fingerprint == data.train.fingerprint != data.test.fingerprint
    picture, animation = show("digits_dvs", 7, tmp_path / "out" / "seven", tmp_path)
    assert picture.read_bytes()[:4] == b"\x89PNG" and animation.read_bytes()[:4] == b"GIF8"
    with pytest.raises(UserError, match="no sample 359 in the test part, which has 359"):
        show("digits_dvs", 359, tmp_path / "x", tmp_path)


@pytest.mark.parametrize("name", ["dvsc10", "digits_dvs"])
def test_info(tmp_path, name):
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(info(name, tmp_path))
    text = console.export_text()
    assert SETS[name].title in text and SETS[name].citation[:20] in text
    assert ("is not in" in text) == (name == "dvsc10")


def test_the_14_real_recordings(shared_data, tmp_path):
    with tarfile.open(shared_data / "dvs128_objects" / "aedat2_raw.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    data = load("dvs128-objects", tmp_path, steps=8)
    assert data.classes == ("box", "mug", "cutter", "pencil", "scissors") and data.split_rule == "session-1-2"
    assert data.train.inputs.shape[1:] == (8, 2, 48, 48)
    per_class = data.train.labels.bincount() + data.test.labels.bincount()
    assert (per_class > 180).all() and (per_class < 330).all(), per_class
    events = read(tmp_path / "DataSet2" / "Caixa.aedat").events
    start = int(events["t"].min()) + 200_000
    second = np.sort(events, order="t", kind="stable")
    second = second[(second["t"] >= start) & (second["t"] < start + 200_000)]
    assert np.array_equal(data.train.inputs[1].numpy(), to_frames(second, 8, (128, 128), out_size=48))
    swapped = load("dvs128-objects", tmp_path, steps=8, split="session-2-1")
    assert torch.equal(swapped.train.labels, data.test.labels)
    assert show("dvs128-objects", 100, tmp_path / "object", tmp_path)[0].is_file()
