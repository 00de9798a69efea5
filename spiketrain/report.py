"""Records → what is read of them: a folder's records and their analyses, learning curves as CSV and as pictures. Trains nothing."""

import csv
import io
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from spiketrain.errors import UserError
from spiketrain.files import read_json
from spiketrain.record import FILE, Record, write_whole

ANALYSIS, ANALYSES = "analysis.json", "analysis"
"""What `spiketrain analyze` writes beside a run's record; the folder of such files beside promoted records."""


def load_records(folder: Path) -> list[Record]:
    """Every record of a folder, in the order of their names.

    Promoted ones, `*.json` there and `<recipe>-s<seed>*.json` in folders there (but `benchmarks` and `analysis`), and those of
    runs, `*/record.json`.
    """
    below = [f for f in sorted(folder.glob("*/*-s[0-9]*.json")) if f.parent.name not in ("benchmarks", ANALYSES)]
    return [Record.load(file) for file in [*sorted(folder.glob("*.json")), *below, *sorted(folder.glob(f"*/{FILE}"))]]


def analysis_of(record: Record) -> dict[str, Any] | None:
    """What `spiketrain analyze` wrote of a record's weights: beside it, or of a promoted one in the folder `analysis` beside it."""
    file = Path(record.path)
    for place in (file.with_name(ANALYSIS), file.parent / ANALYSES / file.name):
        if place.is_file():
            found = read_json(place, "analysis")
            if not isinstance(found, dict) or "weights" not in found:
                raise UserError(f"{place}: not an analysis: write it again with spiketrain analyze")
            if found["weights"] == record.weights:
                return found
    return None


def portable(command: str) -> str:
    """A command without the flags that name places and devices of the machine it ran on, or say how much is printed."""
    try:
        words = [word for word in shlex.split(command) if word not in ("--quiet", "--analyze", "--download")]
    except ValueError:  # of an unclosed quotation mark: not what a run wrote, and shown as it is
        return command
    places = {i for i, word in enumerate(words) if word in ("--data-root", "--output", "--device", "--into", "--tensorboard")}
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
