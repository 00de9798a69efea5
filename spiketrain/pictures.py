"""An analysis as pictures. Reads numbers, knows nothing of networks."""

from pathlib import Path
from typing import Any

ACCENT, GREY = "#c8442a", "#9a9a9a"


def draw_analysis(analysis: dict[str, Any], span: tuple[float, float], file: Path) -> Path:
    """Writes a PNG of six panels: spikes over time, potentials, accuracy over steps, robustness, confusion, features."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.6), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 3).ravel()
    for draw, axes in zip((_rates, _potentials, _steps, _robustness, _confusion, _features), panels, strict=True):
        draw(axes, analysis, span)
        axes.title.set_fontsize(10)
    title = f"{analysis['recipe']}, seed {analysis['seed']}: {analysis['samples']:,} test samples"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(file)
    return file


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, loc="left")


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _rates(axes: Any, analysis: dict[str, Any], span: tuple[float, float]) -> None:
    layers = analysis["layers"]
    image = axes.imshow([layer["rate_by_step"] for layer in layers], aspect="auto", cmap="Oranges", vmin=0)
    axes.set_yticks(range(len(layers)), [layer["name"] for layer in layers], fontsize=7)
    axes.set_xticks(range(analysis["steps"]), [str(t + 1) for t in range(analysis["steps"])])
    axes.set_xlabel("step")
    axes.figure.colorbar(image, ax=axes)
    _title(axes, "firing rate by layer and step")


def _potentials(axes: Any, analysis: dict[str, Any], span: tuple[float, float]) -> None:
    layers = [layer for layer in analysis["layers"] if layer["potentials"]]
    for i, layer in enumerate(layers):
        width = (span[1] - span[0]) / len(layer["potentials"])
        places = [span[0] + width * (j + 0.5) for j in range(len(layer["potentials"]))]
        axes.plot(places, layer["potentials"], color=ACCENT, alpha=0.25 + 0.75 * (i + 1) / len(layers), lw=1, label=layer["name"])
    axes.axvline(1, color=GREY, lw=1, ls="--")
    axes.set_xlabel("u / threshold")
    _plain(axes)
    _title(axes, "potential before the reset (dark: deep layers)")


def _steps(axes: Any, analysis: dict[str, Any], span: tuple[float, float]) -> None:
    values = analysis["accuracy_by_steps"]
    axes.plot(range(1, len(values) + 1), values, color=ACCENT, marker=".")
    axes.axvline(analysis["steps"], color=GREY, lw=1, ls="--")
    axes.set_xlabel("steps (dashed: T of training)")
    _plain(axes)
    _title(axes, "accuracy (%) with so many steps")


def _robustness(axes: Any, analysis: dict[str, Any], span: tuple[float, float]) -> None:
    kinds = sorted({row["kind"] for row in analysis["robustness"]})
    for i, kind in enumerate(kinds):
        rows = [row for row in analysis["robustness"] if row["kind"] == kind]
        most = max(row["level"] for row in rows)
        label = f"{kind} (to {most:g})"
        levels, accuracies = [row["level"] / most for row in rows], [row["accuracy"] for row in rows]
        axes.plot([0, *levels], [analysis["accuracy"], *accuracies], marker=".", label=label, color=f"C{i}")
    axes.set_xlabel("level, as a share of the highest")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    _title(axes, "accuracy (%) under damage")


def _confusion(axes: Any, analysis: dict[str, Any], span: tuple[float, float]) -> None:
    table = analysis["confusion"]
    shares = [[n / max(1, sum(row)) for n in row] for row in table]
    axes.imshow(shares, cmap="Oranges", vmin=0, vmax=1)
    if len(table) <= 12:
        axes.set_xticks(range(len(table)), analysis["classes"][: len(table)], rotation=60, ha="right", fontsize=7)
        axes.set_yticks(range(len(table)), analysis["classes"][: len(table)], fontsize=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    _title(axes, "confusion")


def _features(axes: Any, analysis: dict[str, Any], span: tuple[float, float]) -> None:
    found = analysis["features"]
    if found:
        axes.scatter(found["x"], found["y"], c=found["label"], cmap="tab10" if len(analysis["classes"]) <= 10 else "turbo", s=6)
    axes.set_xticks([])
    axes.set_yticks([])
    _title(axes, "t-SNE of what enters the last layer")
