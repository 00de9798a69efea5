"""The older benchmark's event commands, end to end, on trees in the real layouts and formats of the data sets."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from spiketrain.data.event_sets import CALTECH, CIFAR
from spiketrain.data.readers import write
from spiketrain.data.types import EVENT, Recording
from spiketrain.recipes import seed
from spiketrain.record import Record

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "img_cls" / "bp"))
import main as old

SMALL = ["--event-size", "16", "--step", "2", "--batch-size", "40", "--epochs", "1", "--device", "0"]


@pytest.fixture(autouse=True)
def one_thread():
    """Steps as small as these: threads that wait for each other by spinning cost a busy machine more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recording(number, side=128, n=300):
    rng = np.random.default_rng(number)
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
        for j in range(5):  # nine tenths of five are four
            write.write_bin(folder / f"image_{j:04d}.bin", recording(5 * i + j, 100, 100))
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


ROWS = [row for row in seed.rows() if row.data in ("dvsg", "NCALTECH101")]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.data}-{r.neuron}-{r.surrogate}-{r.model}")
def test_every_gesture_and_caltech_row_trains(row, dvs_gesture, caltech101, tmp_path, monkeypatch):
    root = {"dvsg": dvs_gesture, "NCALTECH101": caltech101}[row.data]
    record = trained(shlex.split(row.command)[2:], root, tmp_path, monkeypatch)
    expected = {"dvsg": (11, 11, 11, "official"), "NCALTECH101": (400, 100, 100, "portion-0.9-objects")}[row.data]
    assert tuple(record.data[k] for k in ("train", "test", "classes", "split")) == expected
    assert (record.recipe["neuron"], record.recipe["surrogate"], record.recipe["model"]) == (row.neuron, row.surrogate, row.model)


def test_caltech_has_101_classes_where_nothing_else_is_said(caltech101, tmp_path, monkeypatch):
    words = "--model dvs_convnet --node-type IFNode --dataset NCALTECH101 --act-fun QGateGrad".split()
    record = trained(words, caltech101, tmp_path, monkeypatch)
    assert (record.data["classes"], record.data["split"]) == (101, "portion-0.9")
