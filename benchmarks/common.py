"""What all benchmarks share: the gate, runs in turns, their medians, memory, tables, and the stored result."""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from spiketrain import kernels, record
from spiketrain.allocator import keep_memory, trim
from spiketrain.errors import UserError
from spiketrain.neurons import Spec

keep_memory()  # for everyone in the process: page faults would drown what is measured
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else torch.compile starts processes, which begin while others are timed

ROOT = Path(__file__).resolve().parent.parent
Run = Callable[[], Any]


class Gate:
    """Checks that come before any time: `check` each, then `close`, which ends the program with status 1 if one failed."""

    def __init__(self) -> None:
        self.checks: list[dict[str, Any]] = []

    def check(self, name: str, found: float, most: float) -> None:
        """found must be at most `most`; a NaN is not."""
        self.checks.append({"check": name, "found": found, "most": most, "good": bool(found <= most)})

    def close(self) -> list[dict[str, Any]]:
        """All checks; does not return where one failed."""
        wrong = [c for c in self.checks if not c["good"]]
        for c in wrong:
            print(f"WRONG: {c['check']}: {c['found']:.3g}, at most {c['most']:.3g} is right")
        if wrong or not self.checks:
            print("no time is printed where a result is wrong")
            sys.exit(1)
        print(f"correct: {len(self.checks)} checks against the reference and the peers of the same equation", flush=True)
        return self.checks


def fast_kernels(quick: bool = False) -> list[str]:
    """Every kernel but the reference that runs on this device, `auto` and each by its name; where it shall be quick, `auto` alone."""
    return ["auto"] if quick else [k for k in kernels.KERNELS if k != "reference" and _runs_here(k)]


def _runs_here(kernel: str) -> bool:
    try:
        Spec(kernel=kernel).make().to(device())(torch.zeros(2, 1, device=device()))
    except UserError as error:
        print(f"kernel {kernel} is left out: {error}")
        return False
    return True


CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME", "CUDA_CACHE_PATH", "HOME")
"""Environment variables by which compiled code is found again."""


def fresh_caches(folder: str) -> dict[str, str]:
    """An environment in which nothing has been compiled yet: each of `CACHES` as an empty folder in this one."""
    caches = {name: f"{folder}/{name.lower()}" for name in CACHES}
    for path in caches.values():
        os.mkdir(path)
    return caches


def in_turns(
    runs: Mapping[str, Run], rounds: int, repeats: int = 1, baseline: str = "", most: float = float("inf"),
    first: Mapping[str, list[float]] | None = None,
) -> dict[str, list[float]]:  # fmt: skip
    """Seconds a call of each run, A B A B, so that all see the same machine.

    A run that took more than `most` times the baseline's time in the first round is left out of the others. first: is given the seconds of
    each turn's first call, which finds the processor's caches as the run before has left them.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds):
        for name, run in runs.items():
            if i and times[name][0] > most * times[baseline or name][0]:
                continue
            settle()
            start = time.perf_counter()
            for call in range(repeats):
                run()
                if first is not None and call == 0:
                    settle()
                    first[name].append(time.perf_counter() - start)
            settle()
            times[name].append((time.perf_counter() - start) / repeats)
    return times


def settle() -> None:
    """Waits until the GPU, where there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(times: list[float]) -> dict[str, Any]:
    """Median and quartiles in ms."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [times[0]] * 3
    return {"ms": round(1e3 * middle, 4), "quartiles_ms": [round(1e3 * low, 4), round(1e3 * high, 4)], "n": len(times)}


def peak_mb(run: Run) -> float:
    """MB of resident memory at most, beyond what the process had before, in a process of its own (Linux)."""
    end, start = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.write(start, str(grown_mb(run)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(start)
    found = os.read(end, 64)
    os.close(end)
    os.waitpid(child, 0)
    return float(found) if found else float("nan")


def grown_mb(run: Run) -> float:
    """MB of memory at most while run runs, beyond what was taken before: resident in this process (Linux), or the GPU's."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        taken = torch.cuda.memory_allocated()
        run()
        return round((torch.cuda.max_memory_allocated() - taken) / 1e6, 1)
    trim()  # what is free already must be taken anew
    Path("/proc/self/clear_refs").write_text("5")  # forget the highest size so far
    before = _resident("VmRSS")
    run()
    return round((_resident("VmHWM") - before) * 1024 / 1e6, 1)


def _resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def device() -> torch.device:
    """The GPU where there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def show(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Prints a table; the first column is text, the others are figures."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:,.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console()
    (console if console.is_terminal else Console(width=180)).print(table)


def options(text: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="times that everyone has its turn")
    parser.add_argument("--quick", action="store_true", help="tiny shapes: whether it runs, not how fast")
    parser.add_argument("--out", type=Path, help="JSON to write")
    return parser


def store(file: Path, **content: Any) -> None:
    """Writes a benchmark's result with the command, machine, versions, commit, and load: more than the threads used means company."""
    whole = {"command": record.command_line(), "machine": record.machine(device())}
    whole |= {"versions": record.versions(), "commit": record.commit(), "load": round(os.getloadavg()[0], 2)}
    file.parent.mkdir(parents=True, exist_ok=True)
    record.write_whole(file, json.dumps(whole | content, indent=1).encode() + b"\n")
    print(f"stored: {file}")
