"""Events → frames: this library, tonic's `ToFrame` and SpikingJelly's integration, on the same recordings, in turns.

    PYTHONPATH=. python benchmarks/frames.py [--rounds 30] [--shared DIR] [--json results/benchmarks/frames.json]

Run it with a Python that has tonic and spikingjelly. Each library gets the events in its own form, made beforehand. Before
any time is taken the frames are compared, number by number: with tonic's exactly, with SpikingJelly's where the two rules
agree (its last frame also takes the remainder that equal spans leave). What fails is printed and nothing is timed.
"""

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import in_turns, peak_mb, store, summary

from spiketrain.data.events import to_frames
from spiketrain.data.types import EVENT

STEPS = 16
Frames = Callable[[], np.ndarray]


def peers() -> tuple[Any, Any]:
    """tonic's transform and SpikingJelly's function."""
    # SpikingJelly imports torchaudio for its speech data; framing events does not need it
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    from spikingjelly.datasets.utils import integrate_events_by_fixed_frames_number
    from tonic.transforms import ToFrame

    return ToFrame, integrate_events_by_fixed_frames_number


def made(n: int, size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    events = np.zeros(n, EVENT)
    events["t"] = np.sort(rng.integers(0, 1_300_000, n))
    events["x"], events["y"], events["p"] = rng.integers(0, size[0], n), rng.integers(0, size[1], n), rng.integers(0, 2, n)
    return events


def recordings(shared: Path | None) -> dict[str, tuple[np.ndarray, tuple[int, int]]]:
    """Name → events and sensor: made ones, and the real samples that are there."""
    found = {"uniform, 200,000 events": (made(200_000, (128, 128)), (128, 128))}
    for file, size in (("sample_nmnist.bin", (34, 34)), ("sample.aedat4", (320, 240)), ("evt2_sample.raw", (1280, 720))):
        if shared and (shared / "formats" / file).is_file():
            from spiketrain.data.readers import read

            found[file] = (read(shared / "formats" / file).events, size)
    return found


def contenders(events: np.ndarray, size: tuple[int, int], by: str) -> dict[str, Frames]:
    to_frame, integrate = peers()
    events = np.sort(events, order="t", kind="stable")
    events = events[: len(events) // STEPS * STEPS]  # so that equal counts are equal for all three
    theirs = np.zeros(len(events), [("t", np.int64), ("x", np.int16), ("y", np.int16), ("p", np.int8)])
    for name in "txyp":
        theirs[name] = events[name]
    bins = {"n_time_bins": STEPS} if by == "time" else {"n_event_bins": STEPS}
    tonic_frames = to_frame(sensor_size=(*size, 2), **bins)
    columns = {name: np.ascontiguousarray(theirs[name]) for name in "txyp"}
    rule = "time" if by == "time" else "number"
    return {
        "spiketrain": lambda: to_frames(events, STEPS, size, by),
        "tonic": lambda: tonic_frames(theirs),
        "spikingjelly": lambda: integrate(columns, rule, STEPS, size[1], size[0]),
    }


def check(runs: dict[str, Frames], by: str) -> None:
    ours, tonic, jelly = (runs[name]() for name in ("spiketrain", "tonic", "spikingjelly"))
    assert np.array_equal(ours, tonic), "spiketrain and tonic differ"
    last = STEPS - 1 if by == "time" else STEPS
    assert np.array_equal(ours[:last], jelly[:last]), "spiketrain and spikingjelly differ"
    assert (ours <= jelly).all()


def measure(runs: dict[str, Frames], rounds: int) -> dict[str, dict[str, Any]]:
    """Median and quartiles, and the peak of memory taken while framing."""
    return {name: summary(t) | {"peak_mb": peak_mb(runs[name])} for name, t in in_turns(runs, rounds).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--shared", type=Path, help="folder with real samples in formats/")
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks/frames.json"))
    arguments = parser.parse_args()
    rows = []
    for name, (events, size) in recordings(arguments.shared).items():
        for by in ("time", "count"):
            runs = contenders(events, size, by)
            check(runs, by)
            row = {"recording": name, "events": len(events), "sensor": size, "steps": STEPS, "by": by}
            row |= {"results": measure(runs, arguments.rounds)}
            rows.append(row)
            line = "  ".join(f"{k} {v['ms']:8.2f} ms {v['peak_mb']:7.1f} MB" for k, v in row["results"].items())
            speed = row["results"]["tonic"]["ms"] / row["results"]["spiketrain"]["ms"]
            print(f"{name:26s} {by:6s} {line}  = {speed:.1f}x tonic", flush=True)
    store(arguments.json, rounds=arguments.rounds, rows=rows)


if __name__ == "__main__":
    main()
