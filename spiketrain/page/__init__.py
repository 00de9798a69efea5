"""Records → one HTML file that needs nothing else: table, plots, and the story of every run. Reads files, trains nothing.

Charts are drawn by uPlot (MIT, in `uplot/`), bundled into the file. Records may come from anybody: their text is only ever
put into the page as JSON, and from there into text nodes.
"""

import dataclasses
import json
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from spiketrain.errors import UserError
from spiketrain.files import read_json
from spiketrain.record import Record, write_whole
from spiketrain.report import portable

ANALYSIS = "analysis.json"


def write_page(records: Iterable[Record], file: Path) -> int:
    """Writes the page of these records; returns its size in bytes."""
    content = page(list(records)).encode()
    write_whole(file, content)
    return len(content)


def page(records: list[Record]) -> str:
    """The page as text."""
    part = resources.files(__package__)
    text = {name: part.joinpath(name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    text |= {name: part.joinpath("uplot", name).read_text(encoding="utf-8") for name in ("uPlot.iife.min.js", "uPlot.min.css")}
    # "<" inside of JSON is only ever part of a string, where \u003c means the same and ends no element
    data = json.dumps([_run(record) for record in records], ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    found = text["page.html"]
    for mark, content in (
        ("/*uplot.css*/", text["uPlot.min.css"]), ("/*page.css*/", text["page.css"]), ("/*uplot.js*/", text["uPlot.iife.min.js"]),
        ("/*page.js*/", text["page.js"]), ("/*data*/", data),
    ):  # fmt: skip
        found = found.replace(mark, content, 1)
    return found


def _run(record: Record) -> dict[str, Any]:
    """What the page shows of a record."""
    values = {k: v for k, v in dataclasses.asdict(record).items() if k not in ("path", "curve")}
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr")
    curve = {name: [_short(entry.get(name)) for entry in record.curve] for name in names}
    return values | {"curve": curve, "portable": portable(record.command), "analysis": _analysis(record)}


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _analysis(record: Record) -> dict[str, Any] | None:
    """What `spiketrain analyze` wrote of a run: beside its record, or in a folder `analysis` beside promoted records."""
    file = Path(record.path)
    for place in (file.with_name(ANALYSIS), file.parent / "analysis" / file.name):
        if place.is_file():
            found = read_json(place, "analysis")
            try:
                if found["weights"] != record.weights:
                    continue
                return {k: found[k] for k in ("layers", "operations", "caveat", "accuracy_by_steps", "robustness", "steps")}
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{place}: not an analysis: write it again with spiketrain analyze") from None
    return None
