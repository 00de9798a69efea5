"""Writes the tables of docs/performance.md, docs/performance-avx512.md and docs/techniques.md from the records in results/benchmarks.

    python benchmarks/performance.py [--results results/benchmarks] [--into docs/performance.md,…]

A marker is `<!-- NAME: begin -->` … `<!-- NAME: end -->`; NAME is a record's file without `.json`. Exit status 1 where a record that
the page asks for is absent.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import ROOT

MARK = re.compile(r"(<!-- (?P<name>[\w-]+): begin -->\n).*?(<!-- (?P=name): end -->)", re.DOTALL)
PAGES = ("performance.md", "performance-avx512.md", "techniques.md")
HEADINGS = {
    "model": "network", "optimizer": "optimiser", "batch": "batch", "side": "side", "part": "part", "layer": "layer", "steps": "T",
    "dtype": "dtype", "layout": "layout", "batch_norm": "batch norm", "ms": "ms", "quartiles_ms": "quartiles", "n": "n",
    "times_least": "× least traffic", "images_per_s": "images/s", "times_ours": "× ours", "times_bound": "× bound", "step_mb": "step, MB",
    "first_ms": "first call, ms", "first_times_ours": "first call, × ours", "whole_mb": "with weights, MB",
    "saved_mb": "saved for backward, MB", "ms_a_step": "ms a step of T",
    "first_call_s": "first call, s", "share": "share",
    "neuron": "neuron", "surrogate": "surrogate", "older_accuracy": "older recipe, %", "older_seconds": "in s",
    "ours_accuracy": "ours, %", "ours_seconds": "in s ", "ahead": "ahead by",
}  # fmt: skip
"""Keys of rows that are shown → the column's title; others are left out."""


def cell(value: Any) -> str:
    """A figure with three or four digits, as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " … ".join(map(cell, value))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table of these rows; what a row holds of a side (`ours`: accuracy, seconds) is a column of its own."""
    rows = [row | {f"{side}_{k}": v for side in ("older", "ours") for k, v in row.get(side, {}).items()} for row in rows]
    keys = [key for key in HEADINGS if any(key in row for row in rows)]
    lines = ["| " + " | ".join(HEADINGS[key] for key in keys) + " |", "| --- " + "| ---: " * (len(keys) - 1) + "|"]
    return lines + ["| " + " | ".join(cell(row.get(key, "")) for key in keys) + " |" for row in rows]


def told(record: dict[str, Any]) -> Iterable[str]:
    """Who made the record: command, machine, versions, commit, and its ratios."""
    machine, versions = record["machine"], record["versions"]
    where = machine.get("accelerator") or f"{machine['processor']}, {machine['threads']} threads"
    peers = "".join(f", {name} {version}" for name, version in record.get("peers", {}).items())
    command = re.sub(r"--data-root \S+", "--data-root DIR", record["command"])
    yield f"`python benchmarks/{command}`  "
    yield f"{where}; torch {versions['torch']}{peers}; commit {record['commit'][:10]}"
    if record.get("ratios"):
        yield ""
        yield "Ours: " + "; ".join(f"{value:.3g} × {name}" for name, value in record["ratios"].items()) + "."
    if record.get("first_step_s"):
        yield ""
        for precision, caches in record["first_step_s"].items():
            for cache, parts in caches.items():
                seconds = ", ".join(f"{part} {cell(value)} s" for part, value in parts.items())
                yield f"- a new process, {precision}, {cache} cache: {seconds}"


def filled(text: str, results: Path) -> str:
    """The page with every table made anew."""

    def fill(found: re.Match[str]) -> str:
        record = json.loads((results / f"{found['name']}.json").read_text())
        return found[1] + "\n".join([*told(record), "", *table(record["rows"])]) + "\n" + found[3]

    return MARK.sub(fill, text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "benchmarks")
    parser.add_argument("--into", default=",".join(str(ROOT / "docs" / page) for page in PAGES))
    given = parser.parse_args()
    try:
        for page in map(Path, given.into.split(",")):
            page.write_text(filled(page.read_text(), given.results))
    except FileNotFoundError as error:
        print(f"performance.py: {error.filename} is absent: run the benchmark that the page names", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
