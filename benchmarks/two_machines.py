"""Two machines in earnest: two network namespaces with their own addresses, of which one is cut off in mid-epoch and comes back.

    python benchmarks/two_machines.py [--epochs 30] [--store results/benchmarks/two_machines.json]

Each has a torchrun of its own, `--nnodes 1:2`, and they find each other through the address of the first. After some epochs the link of
the second goes down and, with the link down, its processes are killed: nobody can say goodbye. The first goes on alone from the last
checkpoint. The second then comes back, and both end the run together. float32 sums are rounded differently in two processes, so that
the run is another draw of what a seed draws: its accuracy must be the mean of undisturbed runs of one process with three seeds, within
`--within` percentage points (a sample of the 359 is 0.28). Needs root (`ip netns`).
"""

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import store

from spiketrain.record import Record

NAMES, ADDRESSES, PORT = (f"spike{os.getpid()}a", f"spike{os.getpid()}b"), ("10.231.7.1", "10.231.7.2"), 29411
REJOIN = "last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=10"
TIMEOUT = "10"
SEEDS = 3
NO_SHARING = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""With a store that lasts over restarts, torchrun (2.14) tells its address once: a machine that comes back would wait for it in vain."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def connect() -> None:
    """Two namespaces joined by a pair of virtual network cards."""
    for name in NAMES:
        ip("netns", "add", name)
    ip("link", "add", "wire0", "netns", NAMES[0], "type", "veth", "peer", "name", "wire1", "netns", NAMES[1])
    for i, name in enumerate(NAMES):
        ip("-n", name, "addr", "add", f"{ADDRESSES[i]}/24", "dev", f"wire{i}")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "set", f"wire{i}", "up")


def train(folder: Path, epochs: int, seed: int = 0) -> list[str]:
    recipe = ["digits", "--epochs", str(epochs), "--seed", str(seed), "--device", "cpu"]
    return ["-m", "spiketrain", "train", *recipe, "--checkpoint-every", "0.5s", "--into", str(folder)]


def machine(i: int, work: list[str], log: Path) -> subprocess.Popen[bytes]:
    """torchrun in namespace `i`."""
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{ADDRESSES[0]}:{PORT}", "--rdzv-id", "two"]
    rendezvous += ["--rdzv-conf", f"{REJOIN},is_host={'false' if i else 'true'}"]
    words = ["-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "9", *rendezvous]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": f"wire{i}", "SPIKETRAIN_TIMEOUT": TIMEOUT, "OMP_NUM_THREADS": "1", **NO_SHARING}
    command = ["ip", "netns", "exec", NAMES[i], sys.executable, *words, "--local-addr", ADDRESSES[i], *work]
    with log.open("ab") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)


def kill_all(i: int) -> None:
    """kill -9 of every process in namespace `i`."""
    found = subprocess.run(["ip", "netns", "pids", NAMES[i]], capture_output=True, text=True, check=False).stdout.split()
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


class Story:
    """What happened, with the second at which it did."""

    def __init__(self, log: Path) -> None:
        self.begun, self.log, self.events = time.monotonic(), log, list[dict[str, Any]]()

    def tell(self, what: str) -> None:
        event = {"second": round(time.monotonic() - self.begun, 1), "event": what, "epochs_done": self.epochs()}
        self.events.append(event)
        print(f"{event['second']:6.1f} s  {what} (epochs done: {event['epochs_done']})", flush=True)

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def epochs(self) -> int:
        said = re.findall(r"^epoch +(\d+)/", self.text(), re.MULTILINE)
        return int(said[-1]) if said else 0

    def wait(self, happened: Callable[[], bool], first: subprocess.Popen[bytes], seconds: float = 150) -> None:
        until = time.monotonic() + seconds
        while not happened():
            if first.poll() is not None or time.monotonic() > until:
                second = self.log.with_name("second.txt").read_text(errors="replace")
                said = f"{self.text()[-3000:]}\nthe second says:\n{second[-3000:]}"
                raise SystemExit(f"the first machine has ended, or nothing happened in {seconds} s:\n{said}")
            time.sleep(0.05)


def run(base: Path, epochs: int) -> list[dict[str, Any]]:
    """The whole story; leaves the run's record in `base/run`."""
    work, story = train(base / "run", epochs), Story(base / "first.txt")

    def headlines() -> list[str]:
        return [line for line in story.text().splitlines() if "parameters, T=" in line]

    first = machine(0, work, base / "first.txt")
    second = machine(1, work, base / "second.txt")
    story.tell("both machines started")
    story.wait(lambda: story.epochs() >= epochs // 6, first)
    if "2 processes" not in headlines()[0]:
        raise SystemExit(f"they did not find each other: {headlines()}")
    ip("-n", NAMES[1], "link", "set", "wire1", "down")
    kill_all(1)
    second.wait()
    story.tell("the second machine's link went down, then its processes were killed")
    starts = len(headlines())
    story.wait(lambda: len(headlines()) > starts, first)
    story.tell("the first machine went on alone")
    alone = story.epochs()
    story.wait(lambda: story.epochs() >= alone + epochs // 6, first)
    ip("-n", NAMES[1], "link", "set", "wire1", "up")
    second = machine(1, work, base / "second.txt")
    story.tell("the second machine came back")
    story.wait(lambda: "2 processes" in headlines()[-1], first)
    story.tell("both went on together")
    if first.wait() or second.wait():
        raise SystemExit(story.text()[-3000:])
    story.tell("the run was done on both")
    return story.events


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--within", type=float, default=1.0, metavar="POINTS")
    parser.add_argument("--store", type=Path, metavar="FILE")
    options = parser.parse_args()
    if os.geteuid():
        print("left out: network namespaces need root")
        return 0
    with tempfile.TemporaryDirectory(prefix="machines") as name:
        base = Path(name)
        for seed in range(SEEDS):
            undisturbed = [sys.executable, *train(base / f"alone{seed}", options.epochs, seed), "--quiet"]
            subprocess.run(undisturbed, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        try:
            connect()
            events = run(base, options.epochs)
        finally:
            for i in (0, 1):
                kill_all(i)
                subprocess.run(["ip", "netns", "delete", NAMES[i]], check=False)
        alone, found = [Record.load(base / f"alone{seed}") for seed in range(SEEDS)], Record.load(base / "run")
    each = [record.test_accuracy for record in alone]
    apart = abs(found.test_accuracy - statistics.mean(each))
    print(f"test accuracy {found.test_accuracy:.2f} %, undisturbed in one process {each} %; {len(found.curve)} epochs")
    if options.store:
        loss = {"run": found.curve[-1]["train_loss"], "undisturbed": [record.curve[-1]["train_loss"] for record in alone]}
        accuracy = {"run": found.test_accuracy, "undisturbed": each}
        store(options.store, events=events, epochs=len(found.curve), timeout_seconds=int(TIMEOUT), test_accuracy=accuracy, train_loss=loss)
    return 0 if apart <= options.within and len(found.curve) == options.epochs else 1


if __name__ == "__main__":
    sys.exit(main())
