"""Many runs: tables of recipes, what has a record, what a run costs, and the runs themselves, each a process of its own.

A run has a folder whose name follows from its recipe (`slug`), so a benchmark that is started again finds what is done, and
continues what was begun. While a run goes on its process holds a lock in that folder, also when the benchmark that started
it is gone: no run is ever run twice at once.
"""

import fcntl
import hashlib
import itertools
import json
import math
import os
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

ERROR = "error.json"
SAMPLES = {
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
    return [r.but(**changes, seed=seed) for r in chosen for seed in seeds]


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
    """Slug → record, of every record in these folders: `*.json`, and the `record.json` of folders in them."""
    found: dict[str, Record] = {}
    for folder in folders:
        for file in sorted([*folder.glob("*.json"), *folder.glob(f"*/{FILE}"), *folder.glob("*/*.json")]):
            if file.name != ERROR and "benchmarks" not in file.parts:
                record = Record.load(file)
                found.setdefault(slug(Recipe.from_dict(record.recipe)), record)
    return found


def operations(recipe: Recipe, record: Record | None = None) -> float:
    """Of a whole training: 3 × 2 a multiply-accumulate (forward, and backward by inputs and by weights), of every step and sample.

    0 where the data set's size is not known.
    """
    if record:
        samples, macs = record.data["train"], record.macs_per_step
    elif recipe.data in SAMPLES:
        samples, shape, classes = SAMPLES[recipe.data]
        if len(shape) == 3 and shape[0] == 2 and recipe.event_size:
            shape = (2, recipe.event_size, recipe.event_size)
        macs = models.count_macs(network_from(recipe, shape[0], recipe.classes or classes), shape)
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
    """One run and where it stands: waiting, running, done, failed."""

    recipe: Recipe
    folder: Path
    state: str = "waiting"
    seconds: float = 0.0
    record: Record | None = None
    error: str = ""
    process: Any = field(default=None, repr=False)
    begun: float = 0.0


def jobs(chosen: Sequence[Recipe], output: Path, results: Iterable[Path], retry: bool = False) -> list[Job]:
    """A job for every recipe; done where a record is there already, failed where the last try was (unless `retry`)."""
    known = find_records([output, *results])
    made = []
    for recipe in chosen:
        job = Job(recipe, output / slug(recipe), record=known.get(slug(recipe)))
        error = job.folder / ERROR
        if job.record:
            job.state = "done"
        elif error.exists() and not retry:
            job.state, job.error = "failed", _said(error)
        made.append(job)
    return made


def _said(file: Path) -> str:
    """The message in a failed run's file."""
    found = read_json(file, "failed run's file", 1 << 20)
    return str(found.get("error", "")) if isinstance(found, dict) else ""


def run(todo: list[Job], devices: Sequence[str], places: Sequence[str], minutes: float = math.inf) -> Iterator[list[Job]]:
    """Runs what waits, one process a device, and yields the jobs whenever it is worth looking at them again.

    `places`: arguments for every run, such as --data-root. After `minutes` nothing new is begun. Stops its processes when
    the caller stops iterating; they leave checkpoints.
    """
    begun, free = time.monotonic(), list(devices)
    try:
        while True:
            for job in todo:
                if job.state == "running" and _ended(job):
                    free.append(str(job.process.device))
            late = time.monotonic() - begun > 60 * minutes
            for job in todo:
                if job.state == "waiting" and free and not late and _start(job, free[0], places):
                    free.pop(0)
            yield todo
            waiting = [job for job in todo if job.state == "waiting"]
            if not any(job.state == "running" for job in todo) and (late or not waiting):
                return
            time.sleep(0.2)
    finally:
        for job in todo:
            if job.state == "running":
                job.process.handle.terminate()


@dataclass
class _Process:
    handle: subprocess.Popen[bytes]
    device: str
    output: Path


def _start(job: Job, device: str, places: Sequence[str]) -> bool:
    """Begins a run; False where another process is at it. Its lock goes over to the run's own process."""
    job.folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(job.folder / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if (job.folder / FILE).exists():  # finished by another since we looked
            job.record, job.state = Record.load(job.folder), "done"
            return False
        (job.folder / ERROR).unlink(missing_ok=True)
        words = [sys.executable, "-m", "spiketrain", *command(job.recipe), "--into", str(job.folder), "--quiet", "--device", device]
        output = job.folder / "output.txt"
        with output.open("ab") as log:
            handle = subprocess.Popen([*words, *places], stdout=log, stderr=log, pass_fds=(lock,), start_new_session=True)
        job.process, job.state, job.begun = _Process(handle, device, output), "running", time.monotonic()
        return True
    finally:
        os.close(lock)  # the process that was started has it too


def _ended(job: Job) -> bool:
    """True where a running job's process has ended; the job then is done or failed."""
    job.seconds = time.monotonic() - job.begun
    status = job.process.handle.poll()
    if status is None:
        return False
    if status == 0 and (job.folder / FILE).exists():
        job.record, job.state = Record.load(job.folder), "done"
        return True
    lines = job.process.output.read_text(errors="replace").strip().splitlines()
    job.state, job.error = "failed", (lines[-1] if lines else "") or f"exit status {status}"
    content = {"error": job.error, "status": status, "command": ["spiketrain", *command(job.recipe)], "output": str(job.process.output)}
    write_whole(job.folder / ERROR, json.dumps(content, indent=1).encode() + b"\n")
    return True
