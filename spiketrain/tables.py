"""Records → the tables of README.md and docs/results.md, in the shape of the older benchmark's table. Trains nothing.

A row is a recipe with every seed that has a record, each kind of machine by itself, so that minutes are those of one. What is known
without a record stands there too (steps, batch size, parameters and multiply-accumulates are counted on the network that the recipe
builds); what only a record can say is "–" until there is one.
"""

import functools
import re
import shlex
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spiketrain import bench, models, recipes
from spiketrain.errors import UserError
from spiketrain.operations import older_macs
from spiketrain.recipes import Recipe, seed
from spiketrain.record import Record, write_whole
from spiketrain.report import analysis_of, load_records

MARK = re.compile(r"<!-- (\S+): begin [^\n]*-->\n(.*?)<!-- \1: end -->", re.DOTALL)
NONE = "no record"
DECISIVE = (
    "data", "classes", "event_size", "model", "width", "steps", "flatten_time", "division", "neuron", "norm", "learn_alpha",
    "learn_threshold", "encoder",
)  # fmt: skip
"""Fields that decide a network's counts: rows that differ in others share a network."""

HEAD = (
    "data set", "neuron, surrogate", "network", "T", "batch size", "MACs (M)", "accuracy (%)", "older table (%)", "parameters",
    "firing rate", "SOPs (M)", "energy (µJ)", "images/s", "minutes", "on", "division", "commit", "command",
)  # fmt: skip
SHORT = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15, 17)
"""The columns of the README's table."""


@dataclass(frozen=True)
class Entry:
    """One row: a recipe, and the records of it in the order of their seeds. older: the older table's figures beside it."""

    recipe: Recipe
    records: tuple[Record, ...]
    older: str = ""

    def cells(self) -> tuple[str, ...]:
        """What stands under `HEAD`."""
        r = self.recipe
        parameters, macs = _counts(r, self.records)
        model = r.model if r.width == 1 else f"{r.model} × {r.width:g}"
        known = (r.data, f"{r.neuron}, {r.surrogate}", model, str(r.steps), str(r.batch_size), macs)
        command = "`" + shlex.join(["spiketrain", *bench.command(r)]) + "`"
        accuracy, rate, sops, energy, speed, minutes, machine, commit = _measured(self.records)
        return (
            *known, accuracy, self.older or "–", parameters, rate, sops, energy, speed, minutes, machine, r.division, commit, command,
        )  # fmt: skip


def _measured(records: Sequence[Record]) -> tuple[str, ...]:
    """Accuracy, firing rate, SOPs, energy, images/s, minutes, machine, commit: means over the records, where there are any."""
    if not records:
        return NONE, *["–"] * 7
    accuracy = f"{statistics.mean(r.test_accuracy for r in records):.2f}"
    if len(records) > 1:
        accuracy += f" ± {statistics.stdev(r.test_accuracy for r in records):.2f}"
    rates = [rate for r in records for rate in r.firing_rates.values()]
    totals = [found["operations"]["totals"] for r in records if (found := analysis_of(r))]
    sops, energy = (statistics.mean(t[key] for t in totals) if totals else None for key in ("sops", "energy_nj"))
    seen = sum(entry["samples_per_second"] * entry["seconds"] for r in records for entry in r.curve)
    seconds = sum(r.train_seconds for r in records)
    commits = {r.commit[:10] + ("+" if r.commit.endswith("+changes") else "") for r in records}
    return (
        f"{accuracy} (n = {len(records)})",
        f"{statistics.mean(rates):.3f}" if rates else "–",
        f"{sops / 1e6:.4g}" if sops is not None else "–",
        f"{energy / 1e3:.4g}" if energy is not None else "–",
        f"{seen / seconds:,.0f}" if seconds else "–",
        f"{seconds / len(records) / 60:.2f}",
        _place(records[0]),
        ", ".join(sorted(commits)),
    )


def _place(record: Record) -> str:
    """The kind of machine, and the precision that `auto` was there."""
    machine = record.machine
    cores = f"{machine['threads']} cores, {machine['processor']}"
    return f"{machine.get('accelerator') or cores}, {record.precision}"


def _counts(recipe: Recipe, records: Sequence[Record]) -> tuple[str, str]:
    """Parameters, and millions of multiply-accumulates of all steps of a sample; of the records, else counted; "–" where neither can be."""
    steps = 1 if recipe.flatten_time else recipe.steps
    if records:
        return f"{records[0].parameters:,}", f"{records[0].macs_per_step * steps / 1e6:,.4g}"
    found = _counted(Recipe(**{name: getattr(recipe, name) for name in DECISIVE}))
    return (f"{found[0]:,}", f"{found[1] * steps / 1e6:,.4g}") if found else ("–", "–")


@functools.cache
def _counted(recipe: Recipe) -> tuple[int, int] | None:
    found = bench.planned(recipe)
    return found and (models.count_parameters(found[0]), models.count_macs(*found))


def _entries(wanted: Iterable[Recipe], records: Iterable[Record], rest: bool) -> list[Entry]:
    """Rows of each recipe wanted, seeds aside, and with `rest` of each other that has a record."""
    older = {row.name: _older(row) for row in seed.rows()}
    runs: dict[Recipe, list[Record]] = {recipe.but(seed=0): [] for recipe in wanted}
    for record in records:
        recipe = Recipe.from_dict(record.recipe).but(seed=0)
        if rest or recipe in runs:
            runs.setdefault(recipe, []).append(record)
    entries = []
    for recipe, found in runs.items():
        places = sorted({_place(record) for record in found}) or [""]
        for place in places:
            here = _by_seed(record for record in found if _place(record) == place)
            entries.append(Entry(recipe, here, older.get(recipe.name.removesuffix("-200"), "")))
    return entries


def _by_seed(records: Iterable[Record]) -> tuple[Record, ...]:
    """One record a seed: the first, in the order of their files."""
    return tuple(r for _, r in sorted({r.seed: r for r in reversed(list(records))}.items()))


def _older(row: seed.Row) -> str:
    return f"{row.accuracy:.2f}" + (f" / {row.accuracy_2:.2f}" if row.accuracy_2 is not None else "")


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def short(folder: Path) -> str:
    """The README's table: every recipe of a name, as it is, that has a record."""
    records = load_records(folder)
    named = _entries((recipes.get(name) for name in recipes.RECIPES), records, rest=False)
    best = {data: max(r.accuracy for r in seed.rows() if r.data == data) for data in {r.data for r in seed.rows()}}
    rows: list[list[str]] = []
    for entry in named:
        if entry.records:
            cells = list(entry.cells())
            if not entry.older and entry.recipe.data in best:
                cells[7] = f"{best[entry.recipe.data]:.2f} (its best)"
            rows.append([cells[i] for i in SHORT])
    done = sum(bool(entry.records) for entry in named if entry.recipe.name in {row.name for row in seed.rows()})
    tail = f"{done} of the older table's {len(seed.rows())} rows have a record so far. All rows: [docs/results.md](docs/results.md)."
    return _markdown([HEAD[i] for i in SHORT], rows) + f"\n\n{tail}"


def full(folder: Path) -> str:
    """The tables of docs/results.md: the older table's rows, this project's recipes, other runs by folder, and how MACs are counted."""
    records = load_records(folder)
    older = [recipes.get(row.name) for row in seed.rows()]
    own = [make() for name, make in recipes.RECIPES.items() if not name.startswith("seed/")]
    other: dict[str, list[Record]] = {}
    for record in records:
        if Recipe.from_dict(record.recipe).but(seed=0) not in {*older, *own}:
            parent = Path(record.path).parent
            other.setdefault("" if parent == folder else parent.name, []).append(record)
    rows = _entries(older, records, rest=False)
    ours = [*_entries(own, records, rest=False), *_entries([], other.pop("", []), rest=True)]
    done = sum(bool(entry.records) for entry in rows)
    parts = [f"## The older table's rows\n\n{done} of {len(rows)} have a record.\n", _table(rows)]
    parts += ["\n## Recipes of this project\n", _table(ours)]
    for name, found in sorted(other.items()):
        wanted = bench.table(name, (0,), {}, {}) if name in bench.TABLES else []
        command = [f"Made by `spiketrain bench {name}`.\n"] if wanted else []
        parts += [f"\n## {name}\n", *command, _table(_entries(wanted, found, rest=True))]
    return "\n".join([*parts, "\n## How multiply-accumulates are counted\n", _macs()])


def of(records: Iterable[Record]) -> str:
    """The table of these records, whatever they are of."""
    return _table(_entries([], records, rest=True))


def _table(entries: Iterable[Entry]) -> str:
    return _markdown(HEAD, [entry.cells() for entry in entries])


def _macs() -> str:
    """The older table's networks: its own figure, the figure its counting gives here, and ours."""
    head = ("data set", "network of the older table", "network here", "T", "older table (M)", "counted its way (M)", "ours (M)")
    lines = []
    for row in {(row.data, row.model): row for row in seed.rows()}.values():
        recipe = recipes.get(row.name)
        found = bench.planned(recipe)
        assert found is not None
        theirs, ours = older_macs(*found, row.steps), models.count_macs(*found) * row.steps / 1e6
        said = f"{row.macs:,.0f}" if row.macs else "–"
        lines.append((row.data, row.model, recipe.model, str(row.steps), said, f"{theirs:,.1f}", f"{ours:,.1f}"))
    note = "The older table gives one figure for data sets of 10 and of 100 classes; its counting rounds to both of its figures with 100."
    return f"{_markdown(head, lines)}\n\n{note}"


REGIONS: dict[str, Callable[[Path], str]] = {"results": short, "all-results": full}
"""Name in a file's markers, `<!-- NAME: begin … -->` and `<!-- NAME: end -->`, → what is written between them."""


def write(file: Path, folder: Path) -> None:
    """Writes a Markdown file's tables anew, from the records in `folder`; `UserError` where it has no markers."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--into {file}: cannot be read ({error.strerror})") from error
    found = [name for name, _ in MARK.findall(text) if name in REGIONS]
    if not found:
        raise UserError(f"--into {file}: has no lines <!-- NAME: begin --> and <!-- NAME: end -->, NAME one of {', '.join(REGIONS)}")

    def renew(match: re.Match[str]) -> str:
        if match[1] not in REGIONS:
            return match[0]
        return f"{match[0].splitlines()[0]}\n{REGIONS[match[1]](folder)}\n<!-- {match[1]}: end -->"

    write_whole(file, MARK.sub(renew, text).encode())
