"""Event files → events: this library's readers and the peers' on the same files, in turns, on one core.

    PYTHONPATH=. python benchmarks/readers.py [--rounds 9] [--events 3000000] [--shared DIR] [--json results/benchmarks/readers.json]

Run it with a Python that has tonic, spikingjelly, expelliarmus and faery. One file of every format is written from made events
(an edge that moves over the sensor, so that neighbouring events are near each other in time as a camera's are); real
samples join where DIR/formats is there. Before any time is taken every peer's events are compared with ours, number by number;
a peer that differs, or that cannot read a file, is named with the reason and gets no time. Memory is the highest resident size
beyond what the process had before it read the file.
"""

import argparse
import os
import statistics
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import in_turns, peak_mb, store, summary

from spiketrain.data.readers import read, write
from spiketrain.data.types import EVENT, Recording

Columns = dict[str, np.ndarray]
Contender = Callable[[Path], Any]


def made(n: int, size: tuple[int, int]) -> Recording:
    """n events of a vertical edge that sweeps over the sensor, one event a µs on average."""
    rng = np.random.default_rng(0)
    events = np.zeros(n, EVENT)
    events["t"] = np.cumsum(rng.integers(0, 3, n))
    centre = (events["t"] // 500) % size[0]
    events["x"] = (centre + rng.integers(0, 6, n)) % size[0]
    events["y"], events["p"] = rng.integers(0, size[1], n), rng.integers(0, 2, n)
    return Recording(events, size)


def write_files(folder: Path, n: int) -> dict[str, Path]:
    """Format → a file of n events."""
    small, large = made(n, (128, 128)), made(n, (1280, 720))
    files = {name: folder / f"made{ending}" for name, ending in (
        ("ATIS .bin", ".bin"), ("AEDAT 2.0", ".2.aedat"), ("AEDAT 3.1", ".3.aedat"), ("AEDAT 4", ".aedat4"), ("Prophesee .dat", ".dat"),
        ("EVT 2.0", ".2.raw"), ("EVT 3.0", ".3.raw"))}  # fmt: skip
    write.write_bin(files["ATIS .bin"], small)
    write.write_aedat2(files["AEDAT 2.0"], small)
    write_aedat31(files["AEDAT 3.1"], small.events)
    write.write_aedat4(files["AEDAT 4"], small)
    write.write_dat(files["Prophesee .dat"], large)
    write_evt2(files["EVT 2.0"], large.events)
    write_evt3(files["EVT 3.0"], large.events)
    return files


def write_aedat31(path: Path, events: np.ndarray, packet: int = 4096) -> None:
    """AEDAT 3.1 as cAER writes it: packets of a few thousand polarity events."""
    words = np.empty((len(events), 2), "<u4")
    words[:, 0] = (events["x"].astype(np.uint32) << 17) | (events["y"].astype(np.uint32) << 2) | (events["p"].astype(np.uint32) << 1) | 1
    words[:, 1] = events["t"]
    parts = [b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"]
    for start in range(0, len(words), packet):
        part = words[start : start + packet]
        parts += [np.array([1, 1], "<u2").tobytes(), np.array([8, 4, 0, *[len(part)] * 3], "<u4").tobytes(), part.tobytes()]
    path.write_bytes(b"".join(parts))


def write_evt2(path: Path, events: np.ndarray) -> None:
    """EVT 2.0: a word an event, and a time-high word every 64 µs."""
    high = events["t"] >> 6
    turn = np.flatnonzero(np.diff(high, prepend=-1))
    word = (events["p"].astype(np.uint32) << 28) | ((events["t"] & 63).astype(np.uint32) << 22)
    word |= (events["x"].astype(np.uint32) << 11) | events["y"].astype(np.uint32)
    words = np.insert(word, turn, (8 << 28) | high[turn].astype(np.uint32)).astype("<u4")
    path.write_bytes(b"% evt 2.0\n% format EVT2;height=720;width=1280\n% geometry 1280x720\n% end\n" + words.tobytes())


def write_evt3(path: Path, events: np.ndarray) -> None:
    """EVT 3.0 without vectors: time-high, time-low and y words where they change, an x word an event."""
    t = events["t"]
    place = 0x2000 | events["p"].astype(np.int64) << 11 | events["x"]
    words = np.stack([0x8000 | (t >> 12) & 0xFFF, 0x6000 | t & 0xFFF, events["y"], place], 1)
    new = np.ones(words.shape, bool)
    new[1:, 0] = np.diff(t >> 12) != 0
    new[1:, 1] = np.diff(t) != 0
    new[1:, 2] = (np.diff(events["y"].astype(np.int64)) != 0) | new[1:, 1]
    path.write_bytes(b"% evt 3.0\n% format EVT3;height=720;width=1280\n% geometry 1280x720\n% end\n" + words[new].astype("<u2").tobytes())


def contenders() -> dict[str, dict[str, Contender]]:
    """Format → name → reader. A peer is there for the formats that its data sets or its file readers are for."""
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))  # SpikingJelly imports it for its speech data
    import expelliarmus
    import faery
    import tonic.io
    from spikingjelly.datasets import cifar10_dvs
    from spikingjelly.datasets import utils as jelly

    def wizard(encoding: str) -> Contender:
        return lambda path: expelliarmus.Wizard(encoding=encoding).read(path)

    def faery_events(path: Path) -> np.ndarray:
        return np.concatenate(list(faery.events_stream_from_file(path)))

    def tonic_aer(path: Path, x: tuple[int, int], y: tuple[int, int], p: int) -> np.ndarray:
        # what tonic.io.read_dvs_128 and read_dvs_ibm mean to do: in 1.7.0 both stop at a header they unpack as two values
        version, start, _ = tonic.io.read_aedat_header_from_file(str(path))
        found = tonic.io.get_aer_events_from_file(str(path), version, start)
        address = found["address"]
        parts = (address >> x[0]) & x[1], (address >> y[0]) & y[1], found["timeStamp"], (address >> p) & 1
        return tonic.io.make_structured_array(*parts)

    atis = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])
    return {
        "ATIS .bin": {"tonic": lambda path: tonic.io.read_mnist_file(str(path), dtype=atis), "spikingjelly": jelly.load_ATIS_bin},
        "AEDAT 2.0": {
            "tonic": lambda path: tonic_aer(path, (8, 127), (1, 127), 0),
            "spikingjelly": cifar10_dvs._load_origin_data,
        },
        "AEDAT 3.1": {"tonic": lambda path: tonic_aer(path, (17, 0x1FFF), (2, 0x1FFF), 1), "spikingjelly": jelly.load_aedat_v3},
        "AEDAT 4": {"tonic": lambda path: tonic.io.read_aedat4(str(path)), "faery": faery_events},
        "Prophesee .dat": {"expelliarmus": wizard("dat"), "faery": faery_events},
        "EVT 2.0": {"expelliarmus": wizard("evt2"), "faery": faery_events},
        "EVT 3.0": {"expelliarmus": wizard("evt3"), "faery": faery_events},
    }


ALIASES = {"t": ("t",), "x": ("x",), "y": ("y",), "p": ("p", "on")}


def columns(found: Any) -> Columns:
    """A reader's answer as columns t, x, y, p of int64."""
    found = found.events if isinstance(found, Recording) else found[1] if isinstance(found, tuple) else found
    names = found.keys() if isinstance(found, dict) else found.dtype.names
    return {c: np.asarray(found[next(n for n in aliases if n in names)]).astype(np.int64) for c, aliases in ALIASES.items()}


def differs(ours: Columns, theirs: Columns) -> str:
    """What is not equal, or nothing."""
    if len(ours["t"]) != len(theirs["t"]):
        return f"{len(theirs['t']):,} events, not {len(ours['t']):,}"
    for name in "txyp":
        wrong = np.flatnonzero(ours[name] != theirs[name])
        if len(wrong):
            return f"{name} of event {wrong[0]:,} is {theirs[name][wrong[0]]}, not {ours[name][wrong[0]]}"
    return ""


REAL = {"ATIS .bin": "sample_nmnist.bin", "AEDAT 4": "sample.aedat4", "Prophesee .dat": "sample_ncars.dat", "EVT 2.0": "evt2_sample.raw"}

CONVENTIONS: dict[tuple[str, str], Callable[[Columns], Columns]] = {
    # both name the axes of a DVS128 the other way round than its maker does
    ("AEDAT 2.0", "tonic"): lambda c: {"t": c["t"], "x": c["y"], "y": c["x"], "p": 1 - c["p"]},
    ("AEDAT 2.0", "spikingjelly"): lambda c: {"t": c["t"], "x": 127 - c["y"], "y": 127 - c["x"], "p": c["p"]},
}
"""A peer's columns as ours are, where it names axes or polarity otherwise."""


def compare(form: str, path: Path, peers: dict[str, Contender], rounds: int) -> dict[str, Any]:
    """One row: events, and for every reader whose events equal ours its rate and memory; the others with a reason."""
    ours = columns(read(path))
    runs: dict[str, Callable[[], Any]] = {"spiketrain": lambda: read(path)}
    refused = {}
    for name, reader in peers.items():
        try:
            theirs = columns(reader(path))
            why = differs(ours, CONVENTIONS[form, name](theirs) if (form, name) in CONVENTIONS else theirs)
        except Exception as error:  # a peer that cannot read the file is part of the answer
            why = f"{type(error).__name__}: {str(error)[:80]}"
        if why:
            refused[name] = why
        else:
            runs[name] = lambda reader=reader: reader(path)
    times = in_turns(runs, rounds, max(1, 100_000 // max(1, len(ours["t"]))))
    n = len(ours["t"])
    found = {
        name: {
            "million_events_per_s": round(n / statistics.median(t) / 1e6, 3),
            **summary(t),
            "peak_mb": peak_mb(runs[name]),
        }
        for name, t in times.items()
    }
    return {"format": form, "file": path.name, "events": n, "bytes": path.stat().st_size, "results": found, "refused": refused}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--events", type=int, default=3_000_000)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks/readers.json"))
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    peers, rows = contenders(), []
    with tempfile.TemporaryDirectory() as folder:
        files = list(write_files(Path(folder), arguments.events).items())
        if arguments.shared:
            files += [(form, arguments.shared / "formats" / name) for form, name in REAL.items()]
        for form, path in files:
            row = compare(form, path, peers[form], arguments.rounds)
            rows.append(row)
            print(line(row), flush=True)
    store(arguments.json, rounds=arguments.rounds, cores=1, rows=rows)


def line(row: dict[str, Any]) -> str:
    cells = [f"{name} {r['million_events_per_s']:7.2f} M/s {r['peak_mb']:6.1f} MB" for name, r in row["results"].items()]
    head = f"{row['format']:15s} {row['file']:20s} {row['events']:9,}  "
    return head + "  ".join(cells + [f"{k}: {why}" for k, why in row["refused"].items()])


if __name__ == "__main__":
    main()
