"""What all benchmarks share: runs in turns, their medians, resident memory, and the stored result."""

import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from spiketrain import record

Run = Callable[[], Any]


def in_turns(runs: Mapping[str, Run], rounds: int, repeats: int = 1) -> dict[str, list[float]]:
    """Seconds a call of each run, A B A B, so that all see the same machine."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            settle()
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            settle()
            times[name].append((time.perf_counter() - start) / repeats)
    return times


def settle() -> None:
    """Waits until the GPU, where there is one, has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary(times: list[float]) -> dict[str, Any]:
    """Median and quartiles in ms."""
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {"ms": round(1e3 * middle, 4), "quartiles_ms": [round(1e3 * low, 4), round(1e3 * high, 4)], "n": len(times)}


def peak_mb(run: Run) -> float:
    """MB of resident memory at most, beyond what the process had before, in a process of its own (Linux)."""
    end, start = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what is free already must be taken anew
            Path("/proc/self/clear_refs").write_text("5")  # forget the highest size so far
            before = _resident("VmRSS")
            run()
            os.write(start, str(_resident("VmHWM") - before).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(start)
    found = os.read(end, 64)
    os.close(end)
    os.waitpid(child, 0)
    return round(int(found) * 1024 / 1e6, 1) if found else float("nan")


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
    Console(width=None if console.is_terminal else 180).print(table)


def store(file: Path, **content: Any) -> None:
    """Writes a benchmark's result with the command, machine, versions and commit."""
    whole = {"command": record.command_line(), "machine": record.machine(device()), "versions": record.versions(), "commit": record.commit()}
    file.parent.mkdir(parents=True, exist_ok=True)
    record.write_whole(file, json.dumps(whole | content, indent=1).encode() + b"\n")
    print(f"stored: {file}")
