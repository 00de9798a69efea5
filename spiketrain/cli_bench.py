"""`spiketrain bench`: the rows of a table, with a live view; `--plan` says what they would take."""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from spiketrain import bench, recipes
from spiketrain.bench import Job
from spiketrain.errors import UserError
from spiketrain.files import read_text
from spiketrain.recipes import Recipe
from spiketrain.record import Record

FILTERS = {"neuron": "neuron", "surrogate": "surrogate", "model": "model", "dataset": "data"}
STATES = (("done", "green"), ("running", "cyan"), ("elsewhere", "cyan"), ("waiting", "dim"), ("failed", "red"))
SHOWN = 14


def add(commands: Any, **options: Any) -> argparse.ArgumentParser:
    """Adds the command `bench` to the main parser."""
    parser: argparse.ArgumentParser = commands.add_parser("bench", help="run the rows of a table that have no record yet", **options)
    parser.description = "Run what has no record yet. It may be killed and started again: nothing is run twice, nothing done is lost."
    parser.add_argument("table", nargs="?", default="seed", metavar="TABLE", help=f"{' | '.join(bench.TABLES)} | a file of rows")
    for flag in FILTERS:
        own = "; FILE.py:FUNCTION: every row with this network of your own" if flag == "model" else ""
        parser.add_argument(f"--{flag}", metavar="A,B", help=f"only rows with this {flag}{own}")
    parser.add_argument("--seeds", metavar="0,1,2", help="seeds for every row (default: the table's)")
    parser.add_argument("--epochs", type=int, metavar="N", help="epochs for every row (default: the recipe's)")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="M", help="begin no run after so many minutes")
    parser.add_argument("--plan", action="store_true", help="print rows, operations and expected time, and run nothing")
    parser.add_argument("--retry", action="store_true", help="run rows again that failed")
    parser.add_argument("--analyze", action="store_true", help="look inside every network too; what has a record but no analysis is run")
    parser.add_argument("--promote", metavar="DIR", help="then copy the records, and analyses, to this folder of results")
    parser.add_argument("--output", default="runs/bench", metavar="DIR", help="where the runs' folders are (default: runs/bench)")
    parser.add_argument("--results", default="results", metavar="DIR", help="promoted records, looked at too (default: results)")
    parser.add_argument("--device", default="auto", metavar="NAME,NAME", help="a process on each of these (default: every GPU, else cpu)")
    parser.add_argument("--data-root", metavar="DIR", help="where data sets lie")
    return parser


def run(options: argparse.Namespace) -> int:
    """Runs `spiketrain bench`; exit status 1 where a row failed."""
    if not options.minutes >= 0:
        raise UserError(f"--minutes {options.minutes:g}: a number from 0 on is expected")
    devices = _devices(options.device)
    places = ["--data-root", options.data_root] if options.data_root else []
    todo = bench.jobs(chosen(options), Path(options.output), [Path(options.results)], options.retry, options.analyze)
    console = Console()
    if options.plan:
        known = bench.find_records([Path(options.output), Path(options.results)]).values()
        console.print(plan(todo, list(known), devices[0]))
        return 0
    begun = time.monotonic()
    with Live(console=console, refresh_per_second=2, transient=console.is_terminal) as live:
        for state in bench.run(todo, devices, places, options.minutes):
            if console.is_terminal:
                live.update(view(state, time.monotonic() - begun))
    console.print(view(todo, time.monotonic() - begun, whole=True))
    for job in todo:
        if job.state == "failed":
            console.print(f"[red]failed[/] {job.folder.name}: {job.error}", highlight=False)
    if options.promote:
        console.print(f"{options.promote}: {bench.promote(todo, Path(options.promote))} records of {len(todo)}", highlight=False)
    return 1 if any(job.state == "failed" for job in todo) else 0


def chosen(options: argparse.Namespace) -> list[Recipe]:
    """The recipes that the options ask for."""
    from spiketrain.cli import allow
    from spiketrain.models import FILE

    seeds = _numbers(options.seeds) if options.seeds else None
    changes: dict[str, Any] = {} if options.epochs is None else {"epochs": options.epochs}
    only = {field: getattr(options, flag).split(",") for flag, field in FILTERS.items() if getattr(options, flag)}
    if FILE in (options.model or ""):  # a network of the user's own, in place of every row's
        allow(options.model)
        changes["model"] = only.pop("model")[0]
    if Path(options.table).is_file():
        return bench.spread(read_rows(Path(options.table)), seeds or (0,), changes, only)
    return bench.table(options.table, seeds, changes, only)


def read_rows(file: Path) -> list[Recipe]:
    """A file of rows: on each line what follows `spiketrain train`, `#` begins a comment; `UserError` names file and line.

    A row may not name a model's file: its code is run only where it is named on the command line itself.
    """
    from spiketrain.cli import recipe_of

    found = []
    for number, line in enumerate(read_text(file, 16 << 20, "file of rows").splitlines(), 1):
        if words := line.partition("#")[0].split():
            try:
                found.append(recipe_of(words, code=False))
            except UserError as error:
                raise UserError(f"{file}: line {number}: {error}") from None
    if not found:
        raise UserError(f"{file}: no row in it; a line is what follows `spiketrain train`, such as: digits --neuron plif")
    return found


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text}: numbers with commas between are expected, such as 0,1,2") from None


def _devices(names: str) -> list[str]:
    import torch

    from spiketrain.assemble import choose_device

    if names == "auto":
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    for name in names.split(","):
        choose_device(name)
    return names.split(",")


def view(todo: Sequence[Job], seconds: float, whole: bool = False) -> Table:
    """The state of all rows; the first `SHOWN` of what is running, failed or next unless `whole`."""
    counts = {state: sum(job.state == state for job in todo) for state, _ in STATES}
    told = [f"[{style}]{counts[state]} {state}[/]" for state, style in STATES if counts[state] or state != "elsewhere"]
    title = f"{', '.join(told)}; {_clock(seconds)} so far{_left(todo)}"
    found = Table(title=title, title_justify="left")
    for heading in ("row", "seed", "state"):
        found.add_column(heading)
    for heading in ("accuracy", "training"):
        found.add_column(heading, justify="right")
    order = {"running": 0, "elsewhere": 0, "failed": 1, "waiting": 2, "done": 3}
    rows = list(todo) if whole else sorted(todo, key=lambda job: order[job.state])[:SHOWN]
    for job in rows:
        style = dict(STATES)[job.state]
        accuracy = f"{job.record.test_accuracy:.2f} %" if job.record else ""
        spent = _clock(job.record.train_seconds) if job.record else _clock(job.seconds) if job.seconds else ""
        found.add_row(_title(job.recipe), str(job.recipe.seed), f"[{style}]{job.state}[/]", accuracy, spent)
    return found


def _title(recipe: Recipe) -> str:
    flags = recipe.but(seed=0).flags(recipes.get(recipe.name).but(seed=0))
    return " ".join([recipe.name, *flags])


def _left(todo: Sequence[Job]) -> str:
    took = [job.seconds for job in todo if job.state == "done" and job.seconds]
    open_ = [job for job in todo if job.state in ("waiting", "running", "elsewhere")]
    if not took or not open_:
        return ""
    workers = max(1, sum(job.state == "running" for job in todo))
    ahead = sum(max(0.0, sum(took) / len(took) - job.seconds) for job in open_)
    return f", about {_clock(ahead / workers)} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d} min"


def plan(todo: Sequence[Job], known: Sequence[Record], device: str) -> Table:
    """Rows, operations of training (6 × MACs × steps × samples × epochs), and the time these took or would take."""
    rate, by = bench.rate(known, device)
    found = Table(title=f"{len(todo)} runs; time {by}", title_justify="left")
    for heading in ("row", "seed", "state"):
        found.add_column(heading)
    for heading in ("PFLOP", "time"):
        found.add_column(heading, justify="right")
    total = 0.0
    for job in todo:
        flop = bench.operations(job.recipe, job.record)
        seconds = job.record.train_seconds if job.record else flop / rate
        total += 0 if job.record else seconds
        found.add_row(_title(job.recipe), str(job.recipe.seed), job.state, f"{flop / 1e15:,.4g}" if flop else "?", _clock(seconds))
    found.caption = f"what has no record yet: {_clock(total)}"
    return found
