"""Mutated recordings: every one must be read, or refused in one line that names file and byte. Nothing may crash, hang or swell.

    python benchmarks/readers_fuzz.py --cases 12000 --shared DIR

Samples: one written file of every format, and the real ones under DIR/formats where DIR is given. Exit status 1 where a case
fails; the failing file is kept under --keep.
"""

import argparse
import collections
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import h5py
import numpy as np
import scipy.io

from spiketrain.data.readers import READERS, read, write
from spiketrain.data.types import EVENT, Recording
from spiketrain.errors import UserError

MOST_SECONDS, MOST_BYTES, MOST_SAMPLE = 10, 6 << 30, 60_000
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def samples(folder: Path, shared: str | None) -> list[tuple[str, bytes]]:
    """(ending, bytes) of whole recordings."""
    rng = np.random.default_rng(0)
    events = np.zeros(400, EVENT)
    events["t"] = np.cumsum(rng.integers(0, 90, 400))
    events["x"], events["y"], events["p"] = rng.integers(0, 100, 400), rng.integers(0, 90, 400), rng.integers(0, 2, 400)
    made = Recording(events, (100, 90))
    write.write_bin(folder / "a.bin", made)
    write.write_dat(folder / "a.dat", made)
    write.write_aedat2(folder / "a.aedat", made)
    write.write_aedat4(folder / "a.aedat4", made)
    np.savez(folder / "a.npz", **{n: events[n] for n in "txyp"})
    np.savez_compressed(folder / "b.npz", **{n: events[n] for n in "txyp"})
    np.save(folder / "a.npy", np.stack([events["x"], events["y"], events["p"], events["t"] // 1000], 1).astype(np.float64))
    scipy.io.savemat(folder / "a.mat", {"ts": events["t"], "x": events["x"], "y": events["y"], "pol": events["p"]}, do_compression=True)
    with h5py.File(folder / "a.h5", "w") as file:
        for name in "txyp":
            file.create_dataset(f"events/{name}", data=events[name])
    columns = [events[c].astype(np.uint32) for c in "txyp"]
    data = np.stack([(columns[1] << 17) | (columns[2] << 2) | (columns[3] << 1) | 1, columns[0]], 1).astype("<u4").tobytes()
    head = np.array([1, 0], "<u2").tobytes() + np.array([8, 4, 0, 400, 400, 400], "<u4").tobytes()
    (folder / "b.aedat").write_bytes(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n" + head + data)
    words = [w for t, x, y, p in events.tolist() for w in (0x8000 | t >> 12, 0x6000 | t & 0xFFF, y, 0x3000 | p << 11 | x, 0x4123, 0x5012)]
    (folder / "b.raw").write_bytes(b"% evt 3.0\n% geometry 1280x720\n% end\n" + np.array(words, "<u2").tobytes())
    files = [f for f in sorted(folder.iterdir()) if f.suffix in READERS]
    files += [f for f in sorted(Path(shared, "formats").iterdir()) if f.suffix in READERS] if shared else []
    return [(f.suffix, f.read_bytes()[:MOST_SAMPLE]) for f in files]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few changes: bits, bytes, numbers, pieces cut, doubled or moved, the end cut; most of them near the beginning."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not out:
            break
        at = rng.randrange(min(len(out), rng.choice((64, 400, len(out)))))
        kind = rng.randrange(6)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            size = rng.choice((2, 4, 8))
            out[at : at + size] = rng.choice(EXTREMES).to_bytes(8, rng.choice(("little", "big")))[:size]
        elif kind == 3:
            del out[at : at + rng.randrange(1, 50)]
        elif kind == 4:
            out[at:at] = out[at : at + rng.randrange(1, 50)]
        else:
            del out[max(at, rng.randrange(len(out))) :]
    return bytes(out)


def _late(number: int, frame: object) -> None:
    raise TimeoutError


def outcome(file: Path) -> str:
    """ "read", "refused", or what went wrong."""
    signal.alarm(MOST_SECONDS)
    try:
        events = read(file).events
        good = events.dtype == EVENT and (not len(events) or int(events["p"].max()) <= 1)
        return "read" if good else "WRONG RESULT"
    except UserError as error:
        clear = re.match(rf"{re.escape(str(file))}: byte \d+: .+", str(error)) and "\n" not in str(error)
        return "refused" if clear else f"UNCLEAR: {error}"
    except BaseException:
        return "CRASH: " + traceback.format_exc().strip().splitlines()[-1]
    finally:
        signal.alarm(0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shared", help="folder with formats/ of real files")
    parser.add_argument("--keep", default="fuzz-failures", help="where failing files are kept")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    signal.signal(signal.SIGALRM, _late)
    rng, tally, begun = random.Random(options.seed), collections.Counter(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        pool = samples(Path(folder), options.shared)
        for i in range(options.cases):
            ending, data = pool[i % len(pool)]
            file = Path(folder) / f"case{ending}"
            file.write_bytes(mutated(data, rng))
            result = outcome(file)
            tally[result.split(":")[0]] += 1
            if result not in ("read", "refused"):
                Path(options.keep).mkdir(exist_ok=True)
                (Path(options.keep) / f"{i}{ending}").write_bytes(file.read_bytes())
                print(f"case {i} {ending}: {result}")
    print(f"{options.cases:,} cases of {len(pool)} samples in {time.monotonic() - begun:.0f} s: {dict(tally)}")
    return 0 if set(tally) <= {"read", "refused"} else 1


if __name__ == "__main__":
    sys.exit(main())
