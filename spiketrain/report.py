"""Records → pictures and tables. Reads files, trains nothing."""

from pathlib import Path

from spiketrain.record import Record


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
