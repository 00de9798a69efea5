"""Many runs: tables of recipes, what has a record, what a run costs, and the runs themselves, each a process of its own.

A run has a folder whose name follows from its recipe (`slug`), so a benchmark that is started again finds what is done, and
continues what was begun. While a run goes on its process holds a lock in that folder, also when the benchmark that started
it is gone: no run is ever run twice at once, and a device that such a run is on is not given to another one.
"""

import fcntl
import hashlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spiketrain import models, recipes
from spiketrain.assemble import network_from
from spiketrain.errors import UserError, unknown
from spiketrain.files import read_json
from spiketrain.recipes import Recipe
from spiketrain.recipes.seed import rows
from spiketrain.record import FILE, Record, machine, write_whole
from spiketrain.report import ANALYSES, ANALYSIS, analysis_of, load_records

ERROR, LOCK = "error.json", ".lock"
STOPPED = 130
"""Exit status of a run that was asked to stop (SIGTERM, Ctrl-C): it left a checkpoint."""
TRIES = 3
"""How often a run is begun whose process was killed: it goes on from its last epoch. One that fails by itself is begun once."""

SAMPLES: dict[str, tuple[int, tuple[int, ...], int]] = {
    "digits": (1438, (1, 8, 8), 10), "digits_dvs": (1438, (2, 34, 34), 10), "mnist": (60_000, (1, 28, 28), 10),
    "cifar10": (50_000, (3, 32, 32), 10), "cifar100": (50_000, (3, 32, 32), 100), "dvsc10": (9_000, (2, 128, 128), 10),
    "dvsg": (1_176, (2, 128, 128), 11), "NCALTECH101": (7_840, (2, 180, 240), 101), "nmnist": (60_000, (2, 34, 34), 10),
    "ncars": (15_422, (2, 100, 120), 2), "imnet": (1_281_167, (3, 224, 224), 1000),
}  # fmt: skip
"""Data set → training samples, shape of one, classes: for plans made before any data are there."""


def _seed_rows(data: str = "") -> list[Recipe]:
    return [recipes.get(row.name) for row in rows() if data in ("", row.data)]


def _digits_grid() -> list[Recipe]:
    base = recipes.get("digits").but(epochs=12)
    grid = itertools.product(("if", "lif", "plif"), ("atan", "qgate"), ("digits_convnet", "resnet9"))
    return [base.but(neuron=n, surrogate=s, model=m, width=1.0 if m == "digits_convnet" else 0.125) for n, s, m in grid]


TABLES: dict[str, tuple[Callable[[], list[Recipe]], tuple[int, ...]]] = {
    "digits-grid": (_digits_grid, (0, 1, 2)),
    "seed": (_seed_rows, (0,)),
    "seed-cifar10": (lambda: _seed_rows("cifar10"), (0,)),
    "seed-cifar100": (lambda: _seed_rows("cifar100"), (0,)),
    "seed-dvsc10": (lambda: _seed_rows("dvsc10"), (0,)),
    "seed-dvsg": (lambda: _seed_rows("dvsg"), (0,)),
    "seed-ncaltech101": (lambda: _seed_rows("NCALTECH101"), (0,)),
}
"""Table → its recipes, and the seeds it is run with where none are named."""


def table(name: str, seeds: Sequence[int] | None, changes: Mapping[str, Any], only: Mapping[str, Sequence[str]]) -> list[Recipe]:
    """The runs of a table: its recipes with `changes`, those whose fields are among `only`'s values, each with every seed."""
    if name not in TABLES:
        raise unknown("table", name, TABLES)
    make, usual = TABLES[name]
    return spread(make(), seeds or usual, changes, only)


def spread(found: Iterable[Recipe], seeds: Sequence[int], changes: Mapping[str, Any], only: Mapping[str, Sequence[str]]) -> list[Recipe]:
    """Every recipe that `only` lets pass, changed, with every seed; `UserError` where none is left."""
    chosen = [r for r in found if all(_fits(str(getattr(r, k)), values) for k, values in only.items())]
    if not chosen:
        wanted = " and ".join(f"{k} {','.join(v)}" for k, v in only.items())
        raise UserError(f"no row has {wanted}: look at --plan without the filter")
    return list(dict.fromkeys(r.but(**changes, seed=seed) for r in chosen for seed in seeds))


def _fits(value: str, wanted: Sequence[str]) -> bool:
    return any(w.lower() in (value.lower(), value.lower().removesuffix("_pooled")) for w in wanted)


def slug(recipe: Recipe) -> str:
    """The name of a run's folder: recipe, seed, and a digest of every field."""
    digest = hashlib.sha256(json.dumps(recipe.to_dict(), sort_keys=True).encode()).hexdigest()
    return f"{recipe.name.replace('/', '-')}-s{recipe.seed}-{digest[:8]}"


def command(recipe: Recipe) -> list[str]:
    """`train RECIPE --flags …`: the arguments that run it."""
    return ["train", recipe.name, *recipe.flags(recipes.get(recipe.name))]


def find_records(folders: Iterable[Path]) -> dict[str, Record]:
    """Slug → record, of every record in these folders (`report.load_records`); the first counts where there are two."""
    found: dict[str, Record] = {}
    for folder in folders:
        for record in load_records(folder):
            found.setdefault(slug(Recipe.from_dict(record.recipe)), record)
    return found


def planned(recipe: Recipe) -> tuple[models.Network, tuple[int, ...]] | None:
    """The network of a recipe (on `meta`: shapes, no numbers) and the shape of a sample; None for data that `SAMPLES` has not."""
    if recipe.data not in SAMPLES:
        return None
    _, shape, classes = SAMPLES[recipe.data]
    if shape[0] == 2 and recipe.event_size:
        shape = (2, recipe.event_size, recipe.event_size)
    return network_from(recipe.but(kernel="reference"), shape[0], recipe.classes or classes).to("meta"), shape


def operations(recipe: Recipe, record: Record | None = None) -> float:
    """Of a whole training: 3 × 2 a multiply-accumulate (forward, and backward by inputs and by weights), of every step and sample.

    0 where the data set's size is not known.
    """
    if record:
        samples, macs = int(record.data["train"]), record.macs_per_step
    elif found := planned(recipe):
        samples, macs = SAMPLES[recipe.data][0], models.count_macs(*found)
    else:
        return 0.0
    return 6.0 * macs * (1 if recipe.flatten_time else recipe.steps) * (recipe.limit or samples) * recipe.epochs


def rate(records: Iterable[Record], device: str) -> tuple[float, str]:
    """Operations a second to expect of a training here, and where that is from: the records of this machine, else a trial."""
    here = machine(torch.device(device))
    rates = [operations(Recipe.from_dict(r.recipe), r) / r.train_seconds for r in records if r.machine == here]
    if rates:
        return max(rates), "at the rate of the fastest record of this machine"
    layer = torch.nn.Conv2d(128, 128, 3, 1, 1).to(device)
    x = torch.randn(16, 128, 16, 16, device=device)
    best = math.inf
    for _ in range(4):
        begun = time.perf_counter()
        float(layer(x).square().sum().backward() or layer.weight.grad.sum())  # type: ignore[func-returns-value, union-attr]
        best = min(best, time.perf_counter() - begun)
    return 4 * x.numel() * 128 * 9 / best, "at the rate of one convolution, tried here"


@dataclass
class Job:
    """One run and where it stands: waiting, running (here), elsewhere (running for another benchmark), done, failed."""

    recipe: Recipe
    folder: Path
    analyze: bool = False
    state: str = "waiting"
    seconds: float = 0.0
    record: Record | None = None
    error: str = ""
    device: str = ""
    tries: int = 0
    process: Any = field(default=None, repr=False)
    begun: float = 0.0


def jobs(chosen: Sequence[Recipe], output: Path, results: Iterable[Path], retry: bool = False, analyze: bool = False) -> list[Job]:
    """A job for every recipe: done where a record is there already (and, with `analyze`, its analysis), else waiting.

    Failed where the last try was, unless `retry`; a try whose process was killed is none.
    """
    known = find_records([output, *results])
    made = []
    for recipe in chosen:
        job = Job(recipe, output / slug(recipe), analyze)
        record, error = known.get(slug(recipe)), job.folder / ERROR
        if record and (not analyze or analysis_of(record)):
            job.record, job.state = record, "done"
        elif error.exists() and not retry:
            error_text, status = _said(error)
            if not _killed(status):
                job.state, job.error = "failed", error_text
        made.append(job)
    return made


def _said(file: Path) -> tuple[str, int]:
    """The message and the exit status in a failed run's file."""
    found = read_json(file, "failed run's file", 1 << 20)
    error, status = (found.get("error"), found.get("status")) if isinstance(found, dict) else ("", 0)
    return str(error), status if isinstance(status, int) else 0


def run(todo: list[Job], devices: Sequence[str], places: Sequence[str], minutes: float = math.inf) -> Iterator[list[Job]]:
    """Runs what waits, one process a device, and yields the jobs whenever it is worth looking at them again.

    `places`: arguments for every run, such as --data-root. After `minutes` nothing new is begun. Stops its processes when
    the caller stops iterating; they leave checkpoints.
    """
    begun = time.monotonic()
    try:
        while True:
            for job in todo:
                if job.state == "running":
                    _look_after(job)
                elif job.state in ("waiting", "elsewhere"):
                    _look_at(job)
            late = time.monotonic() - begun > 60 * minutes
            free = list(devices)
            for job in todo:
                if job.state in ("running", "elsewhere") and job.device in free:
                    free.remove(job.device)
            for job in todo:
                if job.state == "waiting" and free and not late and _start(job, free[0], places):
                    free.pop(0)
            yield todo
            going = any(job.state == "running" or (job.state == "elsewhere" and not late) for job in todo)
            if not going and (late or not any(job.state == "waiting" for job in todo)):
                return
            time.sleep(0.2)
    finally:
        for job in todo:
            if job.state == "running":
                job.process.handle.terminate()


@dataclass
class _Process:
    handle: subprocess.Popen[bytes]
    output: Path


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a run's folder; None where another process has it."""
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _look_at(job: Job) -> None:
    """Whether a run that waits is being run for another benchmark, on which device, or has been finished by it."""
    if not (job.folder / LOCK).exists():
        return
    lock = _lock(job.folder)
    if lock is None:
        job.state, job.device = "elsewhere", (job.folder / LOCK).read_text(errors="replace")
        return
    os.close(lock)
    job.state = "waiting"
    _finished(job)


def _finished(job: Job) -> bool:
    """Makes a job done whose folder has all that is wanted."""
    if (job.folder / FILE).exists() and (not job.analyze or (job.folder / ANALYSIS).exists()):
        job.record, job.state = Record.load(job.folder), "done"
        return True
    return False


def _start(job: Job, device: str, places: Sequence[str]) -> bool:
    """Begins a run; False where another process is at it or has done it. Its lock goes over to the run's own process."""
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = _lock(job.folder)
    if lock is None:
        return False
    try:
        if _finished(job):
            return False
        os.ftruncate(lock, 0)
        os.write(lock, device.encode())
        (job.folder / ERROR).unlink(missing_ok=True)
        words = [sys.executable, "-m", "spiketrain", *command(job.recipe), "--into", str(job.folder), "--quiet", "--device", device]
        output = job.folder / "output.txt"
        with output.open("ab") as log:
            handle = subprocess.Popen(
                [*words, *(["--analyze"] if job.analyze else []), *places], stdout=log, stderr=log, pass_fds=(lock,), start_new_session=True
            )
        job.process, job.state, job.device, job.begun = _Process(handle, output), "running", device, time.monotonic()
        job.tries += 1
        return True
    finally:
        os.close(lock)  # the process that was started has it too


def _killed(status: int) -> bool:
    """Whether a process with this exit status was stopped from outside, and not by what it ran into."""
    return status == STOPPED or -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _error(status: int, output: Path) -> str:
    """What a process that ended with this status has to say: the last line of its output, or its signal."""
    lines = output.read_text(errors="replace").strip().splitlines()
    if status < 0:
        return f"ended by {signal.Signals(-status).name} (see {output})"
    return (lines[-1] if lines else "") or f"exit status {status}"


def _look_after(job: Job) -> None:
    """A running job whose process has ended is done, failed, or, where it was killed, waiting again."""
    job.seconds = time.monotonic() - job.begun
    status = job.process.handle.poll()
    if status is None or (status == 0 and _finished(job)):
        return
    job.error = _error(status, job.process.output)
    job.state = "waiting" if _killed(status) and job.tries < TRIES else "failed"
    if job.state == "failed":
        content = {"error": job.error, "status": status, "command": ["spiketrain", *command(job.recipe)], "output": str(job.process.output)}
        write_whole(job.folder / ERROR, json.dumps(content, indent=1).encode() + b"\n")


def promote(done: Iterable[Job], folder: Path) -> int:
    """Copies records, and analyses where there are any, of jobs that are done into a folder of `results`; returns how many records."""
    (folder / ANALYSES).mkdir(parents=True, exist_ok=True)
    made = [job for job in done if (job.folder / FILE).exists()]
    for job in made:
        write_whole(folder / f"{job.folder.name}.json", (job.folder / FILE).read_bytes())
        if analysis_of(Record.load(job.folder)):
            write_whole(folder / ANALYSES / f"{job.folder.name}.json", (job.folder / ANALYSIS).read_bytes())
    return len(made)
