"""Death at any moment: processes are killed, disks fill up, folders become read-only; the next start must go on as if nothing had been.

    python benchmarks/death.py [--only training,bench] [--count N] [--seed S] [--store results/benchmarks/death.json]

Each trial runs a tiny recipe into one folder, disturbs it at a random moment, looks at what is left, and starts it again, until it is
done. It has survived when, after every disturbance, all that is there is whole and no progress that had been saved is gone; when the
next start goes on in the epoch after the last checkpoint; and when the end is the same, to the bit, as of a run that nobody disturbed,
with nothing half-written left. Prints the tally and ends with status 1 where a trial failed. `full-disk` and `read-only` mount a small
file system and therefore need root; they are left out, and said to be, without it.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import store
from disturb import (
    Disturb,
    Fault,
    Tally,
    children,
    ended,
    ended_before,
    fill,
    finish,
    forbid,
    forked,
    goes_on,
    kill_at_random,
    kill_while_writing,
    mounted,
    outcome,
    position,
    terminate,
)

from spiketrain.cli import main as spiketrain
from spiketrain.data import sets

SMALL = ["--width", "0.25", "--batch-size", "32", "--device", "cpu"]
TRAIN = ["train", "digits", *SMALL, "--epochs", "6", "--checkpoint-every", "0.2s"]
KINDS: dict[str, int] = {
    "training": 14, "evaluation": 8, "checkpoint": 12, "cache": 6, "bench": 6, "group": 4, "sigterm": 6, "full-disk": 4, "read-only": 4,
}  # fmt: skip
"""Kind → disturbances by default; those of the first six are kills."""


def runs(arguments: list[str], disturb: Disturb, count: int, tally: Tally, mount: bool = False) -> None:
    """Disturbs runs of a recipe, three times each, until `count` disturbances have been."""
    with tempfile.TemporaryDirectory(prefix="death") as name, mounted(Path(name) / "disk", mount) as disk:
        log = Path(name) / "log.txt"
        begun = time.monotonic()
        finish(forked(lambda: spiketrain([*arguments, "--into", str(disk / "whole")]), log), log)
        usual, expected = time.monotonic() - begun, outcome(disk / "whole")
        shutil.rmtree(disk / "whole")
        folder = disk / "run"
        while tally.tried < count:
            hits, before = 0, ()
            try:
                while True:
                    pid = forked(lambda: spiketrain([*arguments, "--into", str(folder)]), log)
                    if hits == 3 or tally.tried == count or not disturb(pid, folder, usual):
                        finish(pid, log)
                        break
                    hits, tally.tried = hits + 1, tally.tried + 1
                    goes_on(log, before)
                    after = position(folder) if folder.exists() else ()
                    if after < before:
                        raise Fault(f"the checkpoint {before} is gone, the newest is {after}")
                    before = after
                goes_on(log, before)
                if outcome(folder) != expected:
                    raise Fault(f"another outcome: {outcome(folder)}, not {expected}")
                tally.survived += hits
            except Fault as fault:
                tally.faults.append(str(fault))
            shutil.rmtree(folder, ignore_errors=True)


def caches(count: int, tally: Tally) -> None:
    """kill -9 while recordings are made and framed; the cache that the last start opens is the one of an undisturbed build."""
    with tempfile.TemporaryDirectory(prefix="death") as name:
        base = Path(name)

        def build(root: Path) -> int:
            data = sets.load("digits_dvs", root, steps=6, event_size=0)
            (root / "found.txt").write_text(data.train.fingerprint + data.test.fingerprint)
            return 0

        log, roots = base / "log.txt", iter(range(10**6))
        begun = time.monotonic()
        (base / "whole").mkdir()
        finish(forked(lambda: build(base / "whole"), log), log)
        usual, expected = time.monotonic() - begun, (base / "whole" / "found.txt").read_text()
        while tally.tried < count:
            root = base / f"run{next(roots)}"
            root.mkdir()
            try:
                hits = 0
                while hits < 3 and tally.tried < count and kill_at_random(forked(lambda root=root: build(root), log), root, usual):
                    hits, tally.tried = hits + 1, tally.tried + 1
                finish(forked(lambda root=root: build(root), log), log)
                if (root / "found.txt").read_text() != expected or list(root.glob("**/*.part")):
                    raise Fault(f"another cache, or something left: {list(root.glob('**/*.part'))}")
                tally.survived += hits
            except Fault as fault:
                tally.faults.append(str(fault))
            shutil.rmtree(root)


def benches(count: int, tally: Tally) -> None:
    """kill -9 of `spiketrain bench` or of the run that it has started; in the end every row has one record, the undisturbed one."""
    with tempfile.TemporaryDirectory(prefix="death") as name:
        base = Path(name)
        (base / "rows.txt").write_text("".join(f"digits {' '.join(SMALL[:4])} --epochs 2 --seed {seed}\n" for seed in (0, 1)))
        log = base / "log.txt"

        def bench(output: Path) -> int:
            words = ["bench", str(base / "rows.txt"), "--output", str(output), "--results", str(base / "none"), "--device", "cpu"]
            return forked(lambda: spiketrain([*words, "--retry"]), log)

        begun = time.monotonic()
        finish(bench(base / "whole"), log)
        usual, expected = time.monotonic() - begun, weights(base / "whole")
        while tally.tried < count:
            try:
                hits = 0
                while hits < 3 and tally.tried < count:
                    pid = bench(base / "run")
                    if ended_before(pid, random.uniform(0, usual)):
                        ended(pid)
                        break
                    os.kill(random.choice([pid, *children(pid)]), signal.SIGKILL)
                    hits, tally.tried = hits + 1, tally.tried + 1
                    ended(pid)  # where a run was killed and not the bench, it does the other rows first
                finish(bench(base / "run"), log)
                if weights(base / "run") != expected:
                    raise Fault(f"other records: {weights(base / 'run')}, not {expected}")
                tally.survived += hits
            except Fault as fault:
                tally.faults.append(str(fault))
            shutil.rmtree(base / "run", ignore_errors=True)


def weights(output: Path) -> list[str]:
    """Digests of the weights of all records there."""
    return sorted(json.loads(file.read_text())["weights"] for file in output.glob("*/record.json"))


def groups(count: int, tally: Tally) -> None:
    """kill -9 of one of two processes that torchrun has started: the group starts again by itself and ends as undisturbed."""
    with tempfile.TemporaryDirectory(prefix="death") as name:
        base = Path(name)

        def group(folder: Path) -> subprocess.Popen[bytes]:
            words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "9", "-m", "spiketrain"]
            with (base / "log.txt").open("wb") as log:
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                return subprocess.Popen([sys.executable, *words, *TRAIN, "--into", str(folder)], stdout=log, stderr=log, env=environment)

        begun = time.monotonic()
        group(base / "whole").wait()
        usual, expected = time.monotonic() - begun, outcome(base / "whole")
        while tally.tried < count:
            try:
                hits, agent = 0, group(base / "run")
                while hits < 2 and tally.tried < count:
                    time.sleep(random.uniform(0.3 * usual, 0.9 * usual))
                    workers = children(agent.pid)
                    if agent.poll() is not None or not workers:
                        break
                    os.kill(random.choice(workers), signal.SIGKILL)
                    hits, tally.tried = hits + 1, tally.tried + 1
                if agent.wait(120) != 0 or outcome(base / "run") != expected:
                    raise Fault(f"status {agent.returncode}: {(base / 'log.txt').read_text()[-300:]}")
                tally.survived += hits
            except Fault as fault:
                tally.faults.append(str(fault))
            shutil.rmtree(base / "run", ignore_errors=True)


EVALUATING = ["--eval-batch-size", "3"]  # most of the time is then spent in it
WORK: dict[str, Callable[[int, Tally], None]] = {
    "training": lambda n, t: runs(TRAIN, kill_at_random, n, t),
    "evaluation": lambda n, t: runs([*TRAIN, *EVALUATING], kill_at_random, n, t),
    "checkpoint": lambda n, t: runs([*TRAIN[:-1], "0.02s", "--epochs", "3"], kill_while_writing, n, t),
    "cache": caches,
    "bench": benches,
    "group": groups,
    "sigterm": lambda n, t: runs(TRAIN, terminate, n, t),
    "full-disk": lambda n, t: runs(TRAIN, fill, n, t, mount=True),
    "read-only": lambda n, t: runs(TRAIN, forbid, n, t, mount=True),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(KINDS), metavar="A,B", help="kinds of disturbance")
    parser.add_argument("--count", type=int, default=0, metavar="N", help="disturbances of each kind (default: as many as make 50 kills)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, metavar="FILE", help="add the tally to this record, in which kinds are replaced")
    options = parser.parse_args()
    kinds: dict[str, Any] = json.loads(options.store.read_text())["kinds"] if options.store and options.store.exists() else {}
    faults = 0
    for kind in options.only.split(","):
        if kind in ("full-disk", "read-only") and os.geteuid():
            print(f"{kind:<12} left out: mounting a file system needs root")
            continue
        random.seed(f"{options.seed} {kind}")
        tally, begun = Tally(), time.monotonic()
        WORK[kind](options.count or KINDS[kind], tally)
        seconds = time.monotonic() - begun
        print(f"{kind:<12} {tally.survived} of {tally.tried} survived, {seconds:.0f} s", *tally.faults, sep="\n  ", flush=True)
        kinds[kind] = dataclasses.asdict(tally) | {"seed": options.seed, "seconds": round(seconds)}
        faults += len(tally.faults)
        if options.store:
            store(options.store, kills=kills(kinds), kinds={k: kinds[k] for k in KINDS if k in kinds})
    print(f"kills: {kills(kinds)['survived']} of {kills(kinds)['tried']} survived")
    return 1 if faults else 0


def kills(kinds: dict[str, Any]) -> dict[str, int]:
    """The sums of the kinds that are kills."""
    return {what: sum(kinds[k][what] for k in list(KINDS)[:6] if k in kinds) for what in ("tried", "survived")}


if __name__ == "__main__":
    sys.exit(main())
