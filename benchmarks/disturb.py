"""What `death.py` does to processes, and how it looks at what is left of them."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spiketrain import checkpoint


class Fault(Exception):
    """What was wrong after a disturbance."""


@dataclass
class Tally:
    """tried and survived count disturbances."""

    tried: int = 0
    survived: int = 0
    faults: list[str] = field(default_factory=list)


def forked(work: Callable[[], int], log: Path) -> int:
    """Starts a process that has everything imported already, its output in a file; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    torch.set_num_threads(1)  # threads of a tiny network that wait for each other take most of the time
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    status = 70
    try:
        status = work()
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def ended(pid: int, seconds: float = 120.0) -> int | None:
    """The exit status of a process, minus the signal where one ended it; None where it still runs after so many seconds."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


def finish(pid: int, log: Path) -> None:
    """Waits for a process that must end well."""
    status = ended(pid)
    if status != 0:
        raise Fault(f"ended with {status}: {log.read_text(errors='replace')[-300:]}")


def ended_before(pid: int, seconds: float) -> bool:
    """Whether a process (which is left to be waited for) ends within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return True
        time.sleep(0.002)
    return False


def died_of(pid: int, *wanted: int) -> bool:
    """Whether a process ends with such a status, or by such a signal; if not, it is left to be waited for."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if found is None or found.si_status not in wanted:
        return False
    ended(pid)
    return True


def position(folder: Path) -> tuple[int, ...]:
    """Epochs and batches that the newest checkpoint has behind it; also looks whether all that is there is whole."""
    found = sorted(folder.glob("checkpoint-*"))

    def whole() -> int:
        for path in found:
            checkpoint.load(path)
        return 0

    log = folder.parent / "look.txt"
    finish(forked(whole, log), log)
    if (folder / "record.json").exists():
        json.loads((folder / "record.json").read_text())
    return tuple(int(n) for n in found[-1].name.split("-")[1:]) if found else ()


def outcome(folder: Path) -> dict[str, Any]:
    """What a finished run came to, without what time it took; `Fault` where something half-written is left."""
    left = [p.name for p in folder.iterdir() if p.name.startswith(".") and p.name != ".lock"]
    if left:
        raise Fault(f"left behind: {', '.join(left)}")
    record = json.loads((folder / "record.json").read_text())
    curve = [{k: v for k, v in e.items() if "second" not in k} for e in record["curve"]]
    return {"weights": record["weights"], "curve": curve, "accuracy": record["test_accuracy"], "rates": record["firing_rates"]}


def goes_on(log: Path, before: tuple[int, ...]) -> None:
    """`Fault` where the first epoch that a run reports is not the one after its checkpoint."""
    if (said := re.search(r"^epoch +(\d+)/", log.read_text(errors="replace"), re.MULTILINE)) and int(said[1]) != (before or (0,))[0] + 1:
        raise Fault(f"began with epoch {said[1]} after the checkpoint {before}")


Disturb = Callable[[int, Path, float], bool]
"""(process, folder, seconds that an undisturbed run takes) → whether it was disturbed before it was done."""


def kill_at_random(pid: int, folder: Path, usual: float) -> bool:
    """kill -9 at a moment that is uniform in the time that a run takes."""
    if ended_before(pid, random.uniform(0, usual)):
        return False
    os.killpg(pid, signal.SIGKILL)
    return died_of(pid, signal.SIGKILL)


def kill_while_writing(pid: int, folder: Path, usual: float) -> bool:
    """kill -9 while a checkpoint is half-written: its folder is there under its other name, for up to 4 ms."""
    time.sleep(random.uniform(0, usual / 2))
    while not list(folder.glob(".checkpoint-*.part")):
        if ended_before(pid, 0.0001):
            return False
    time.sleep(random.uniform(0, 0.004))
    os.killpg(pid, signal.SIGKILL)
    return died_of(pid, signal.SIGKILL)


def terminate(pid: int, folder: Path, usual: float) -> bool:
    """SIGTERM at a random moment: exit status 143, the way on is said, and what had been done is not lost."""
    if ended_before(pid, random.uniform(0.1, usual)):
        return False
    os.kill(pid, signal.SIGTERM)
    return died_of(pid, 128 + signal.SIGTERM)


def fill(pid: int, folder: Path, usual: float) -> bool:
    """The disk is full from a random moment on: the run ends in one line, and goes on when there is room again."""
    if ended_before(pid, random.uniform(0, usual)):
        return False
    junk = folder.parent / "junk"
    try:
        with contextlib.suppress(OSError), junk.open("wb", buffering=0) as stream:
            while True:
                stream.write(bytes(4096))
        return refused(pid, folder)
    finally:
        junk.unlink(missing_ok=True)


def forbid(pid: int, folder: Path, usual: float) -> bool:
    """The file system is read-only from a random moment on: the run ends in one line, and goes on when it may write again."""
    if ended_before(pid, random.uniform(0, usual)):
        return False
    mount = folder.parent
    while subprocess.run(["mount", "-o", "remount,ro", str(mount)], capture_output=True, check=False).returncode:
        if ended_before(pid, 0.001):
            return False
    try:
        return refused(pid, folder)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(mount)], check=True)


def refused(pid: int, folder: Path) -> bool:
    """Whether a process ends with status 2 and one line that says what cannot be written."""
    if not died_of(pid, 2):
        return False
    log = (folder.parent.parent / "log.txt").read_text(errors="replace")
    if "Traceback" in log or "cannot be" not in log.splitlines()[-1]:
        raise Fault(log[-300:])
    return True


@contextlib.contextmanager
def mounted(folder: Path, really: bool) -> Iterator[Path]:
    """A folder, on a file system of 2 MB of its own where `really`."""
    folder.mkdir()
    if really:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        if really:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = stat.read_text().rpartition(")")[2].split()
            if int(words[1]) == pid and words[0] != "Z":
                found.append(int(stat.parent.name))
    return found
