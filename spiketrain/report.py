"""Records → pictures and tables. Reads files, trains nothing."""

import csv
import io
import shlex
import statistics
from collections.abc import Iterable
from pathlib import Path

from spiketrain.errors import UserError
from spiketrain.files import read_text
from spiketrain.record import Record, write_whole

BEGIN, END = "<!-- results: begin (written by `spiketrain report`) -->", "<!-- results: end -->"
HEAD = ("data", "recipe", "network", "T", "test accuracy (last epoch)", "parameters", "firing rate", "training", "command")


def load_records(folder: Path) -> list[Record]:
    """Every record of a folder, in the order of their names: promoted ones, `*.json`, and those of runs, `*/record.json`."""
    return [Record.load(file) for file in [*sorted(folder.glob("*.json")), *sorted(folder.glob("*/record.json"))]]


def table(records: Iterable[Record]) -> str:
    """A Markdown table with a row a recipe: its runs with different seeds are one row, mean ± standard deviation."""
    runs: dict[str, list[Record]] = {}
    for record in records:
        key = {k: v for k, v in record.recipe.items() if k != "seed"}
        runs.setdefault(f"{record.data['name']} {record.recipe['name']} {sorted(key.items())}", []).append(record)
    lines = [HEAD, tuple("---" for _ in HEAD), *(_row(runs[key]) for key in sorted(runs))]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def write_table(file: Path, records: Iterable[Record]) -> None:
    """Puts the table between the two markers of a Markdown file; `UserError` where they are absent."""
    text = read_text(file, 64 << 20, "Markdown file")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{file}: the lines {BEGIN!r} and {END!r} are not in it")
    file.write_text(f"{before}{BEGIN}\n{table(records)}\n{END}{after}", encoding="utf-8")


def _row(runs: list[Record]) -> tuple[str, ...]:
    first, r = runs[0], runs[0].recipe
    accuracies = [run.test_accuracy for run in runs]
    accuracy = f"{statistics.mean(accuracies):.2f}"
    accuracy += f" ± {statistics.stdev(accuracies):.2f} (n = {len(runs)})" if len(runs) > 1 else f" (seed {first.seed})"
    rates = [rate for run in runs for rate in run.firing_rates.values()]
    seconds = statistics.mean(run.train_seconds for run in runs)
    where = first.machine.get("accelerator") or f"{first.machine['threads']} cores, {first.machine['processor']}"
    return (
        first.data["name"],
        r["name"],
        f"{r['model']}, {r['neuron']}, {r['surrogate']}",
        str(r["steps"]),
        accuracy,
        f"{first.parameters:,}",
        f"{statistics.mean(rates):.3f}" if rates else "–",
        f"{seconds:.0f} s, {first.precision}, {where}",
        f"`{portable(first.command)}`",
    )


def portable(command: str) -> str:
    """A command without the flags that name places and devices of the machine it ran on."""
    try:
        words = shlex.split(command)
    except ValueError:  # of an unclosed quotation mark: not what a run wrote, and shown as it is
        return command
    places = {i for i, word in enumerate(words) if word in ("--data-root", "--output", "--device", "--into")}
    return shlex.join(word for i, word in enumerate(words) if i not in places and i - 1 not in places)


def write_curves(records: Iterable[Record], file: Path) -> int:
    """Writes CSV with a line an epoch of every record: recipe, seed, epoch, and the curve's columns. Returns the number of lines."""
    lines = [
        {"recipe": record.recipe["name"], "seed": record.seed, "weights": record.weights[:12], "epoch": epoch, **entry}
        for record in records
        for epoch, entry in enumerate(record.curve, 1)
    ]
    content = io.StringIO()
    writer = csv.DictWriter(content, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_whole(file, content.getvalue().encode())
    return len(lines)


def draw_curve(record: Record, file: Path) -> Path:
    """Writes a PNG of the learning curve: accuracy and loss of training and test by epoch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = range(1, len(record.curve) + 1)
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for axes, name, unit in ((left, "accuracy", "%"), (right, "loss", "")):
        for part, colour in (("train", "#9a9a9a"), ("test", "#c8442a")):
            label = "training" if part == "train" else part
            axes.plot(epochs, [e[f"{part}_{name}"] for e in record.curve], color=colour, marker=".", label=label)
        axes.set_xlabel("epoch")
        axes.set_title(f"{name} ({unit})" if unit else name, loc="left", fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    left.legend(frameon=False)
    r = record.recipe
    title = f"{r['name']}: {r['model']}, {r['neuron']}, T={r['steps']}, seed {record.seed}: {record.test_accuracy:.2f} % in the last epoch"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(file)
    return file
