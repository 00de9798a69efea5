"""The older benchmark's event commands, end to end, on trees in the real layouts and formats of the data sets."""

import sys
from pathlib import Path

import numpy as np
import pytest

from spiketrain.data.event_sets import CALTECH, CIFAR
from spiketrain.data.readers import write
from spiketrain.data.types import EVENT, Recording
from spiketrain.record import Record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "img_cls" / "bp"))
import main as old

SMALL = ["--event-size", "16", "--step", "2", "--batch-size", "4", "--epochs", "1", "--device", "0"]


def recording(seed, side=128, n=300):
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT)
    events["t"] = np.sort(rng.integers(0, 300_000, n))
    events["x"], events["y"], events["p"] = rng.integers(0, side, n), rng.integers(0, side, n), rng.integers(0, 2, n)
    return Recording(events, (side, side))


@pytest.fixture(scope="module")
def cifar10_dvs(tmp_path_factory):
    """CIFAR10-DVS as tonic unpacks it: AEDAT 4 files, one folder a class."""
    root = tmp_path_factory.mktemp("dvsc10")
    for i, name in enumerate(CIFAR):
        folder = root / "DVS" / "DVS_Cifar10" / "CIFAR10DVS" / name
        folder.mkdir(parents=True)
        for j in range(10):
            write.write_aedat4(folder / f"cifar10_{name}_{j}.aedat4", recording(10 * i + j))
    return root


@pytest.fixture(scope="module")
def dvs_gesture(tmp_path_factory):
    """DVS-Gesture as tonic unpacks it: one .npy a gesture, one folder a user."""
    root = tmp_path_factory.mktemp("dvsg")
    for part in ("ibmGestureTrain", "ibmGestureTest"):
        folder = root / "DVS" / "DVSGesture" / "DVSGesture" / part / "user01_led"
        folder.mkdir(parents=True)
        for label in range(11):
            e = recording(label).events
            np.save(folder / f"{label}.npy", np.stack([e["x"], e["y"], e["p"], e["t"] // 1000], 1).astype(np.float64))
    return root


@pytest.fixture(scope="module")
def caltech101(tmp_path_factory):
    """N-Caltech101: ATIS files, 101 class folders."""
    root = tmp_path_factory.mktemp("ncaltech")
    for i, name in enumerate(CALTECH):
        folder = root / "DVS" / "NCALTECH101" / "NCALTECH101" / "Caltech101" / name
        folder.mkdir(parents=True)
        for j in range(6):  # of six, nine tenths are five
            write.write_bin(folder / f"image_{j:04d}.bin", recording(6 * i + j, 100, 100))
    return root


def trained(words, root, tmp_path, monkeypatch):
    """Runs main.py; returns the record."""
    monkeypatch.setenv("SPIKETRAIN_CACHE", str(root / "cache"))
    assert old.main([*words, *SMALL, "--data-root", str(root), "--output", str(tmp_path)]) == 0
    (run,) = tmp_path.iterdir()
    return Record.load(run)


@pytest.mark.parametrize("extra", [[], ["--event-mix"], ["--cut-mix"], ["--mix-up"], ["--rand-aug"]], ids=lambda e: "".join(e) or "plain")
def test_the_readme_example_trains(extra, cifar10_dvs, tmp_path, monkeypatch):
    words = "--model dvs_convnet --node-type LIFNode --dataset dvsc10 --act-fun QGate".split()
    record = trained([*words, *extra], cifar10_dvs, tmp_path, monkeypatch)
    assert (record.data["train"], record.data["test"], record.data["split"]) == (90, 10, "portion-0.9")
    assert record.parameters == 7_532_826 and np.isfinite(record.curve[-1]["train_loss"])


def test_a_gesture_row_trains(dvs_gesture, tmp_path, monkeypatch):
    words = "--num-classes 11 --model dvs_convnet --node-type PLIFNode --dataset dvsg --act-fun AtanGrad".split()
    record = trained(words, dvs_gesture, tmp_path, monkeypatch)
    assert (record.data["train"], record.data["test"], record.data["classes"]) == (11, 11, 11)


@pytest.mark.parametrize(("flags", "classes", "split"), [(["--num-classes", "100"], 100, "portion-0.9-objects"), ([], 101, "portion-0.9")])
def test_a_caltech_row_trains_with_100_and_with_101_classes(flags, classes, split, caltech101, tmp_path, monkeypatch):
    words = "--model dvs_convnet --node-type IFNode --dataset NCALTECH101 --act-fun QGateGrad".split()
    record = trained([*words, *flags], caltech101, tmp_path, monkeypatch)
    assert (record.data["classes"], record.data["split"]) == (classes, split)
