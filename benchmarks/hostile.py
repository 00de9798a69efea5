"""Files from elsewhere, damaged or made to harm: every one must be read, or refused in one line. Nothing may run, escape or swell.

    python benchmarks/hostile.py [--kinds checkpoint,record,…] [--cases 10000] [--seed 0] [--json results/benchmarks/hostile.json]

Each kind has whole samples; a case changes one by its structure (a field, a claimed size, a name, a member) or by its bytes, and reads
it with what the commands read it with. Printed a kind: refused in one line / read / anything else. Exit status 1 if there is any "else",
with its traceback. The process may take 6 GiB of address space, a case ten seconds; pickles, YAML tags and names in archives try to make
a file outside of the folder, and none may be there at the end. Command lines are a list, not random: all of them must be refused.
"""

import argparse
import collections
import json
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hostile_files
import hostile_lines
import torch
from common import store
from hostile_common import Kind, tried

MOST_BYTES = 6 << 30
KINDS: dict[str, Kind] = hostile_files.KINDS


def late(number: int, frame: object) -> None:
    raise TimeoutError


def run(name: str, cases: int, seed: int, failures: list[str]) -> dict[str, Any]:
    """One kind's tally: refused, read, else, seconds."""
    tally: collections.Counter[str] = collections.Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        inside = Path(place, "inside")
        inside.mkdir()
        case = KINDS[name](inside)
        for i in range(cases):
            result, text = tried(lambda i=i: case(random.Random(f"{name} {seed} {i}")))
            tally[result] += 1
            if result == "else":
                failures.append(f"{name}, case {i}: {text}")
                print(f"{name}, case {i}:\n{text}", flush=True)
        outside = sorted(p.name for p in Path(place).iterdir() if p != inside)
        if outside:
            tally["else"] += 1
            failures.append(f"{name}: wrote outside of its folder: {outside}")
    return {kind: tally[kind] for kind in ("refused", "read", "else")} | {"seconds": round(time.monotonic() - begun, 1)}


def commands(failures: list[str]) -> dict[str, Any]:
    """The tally of command lines."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        wrong = [f"{' '.join(words)[:200]}: {said}" for words, said in hostile_lines.tried(Path(place)) if said]
        count = len(hostile_lines.lines(Path(place)))
    failures += wrong
    print("\n".join(wrong))
    return {"refused": count - len(wrong), "read": 0, "else": len(wrong), "seconds": round(time.monotonic() - begun, 1)}


def kept(options: argparse.Namespace) -> dict[str, Any]:
    """Rows of an earlier run with as many cases and the same seed: a long run may be made in parts."""
    if not options.json.exists():
        return {}
    found = json.loads(options.json.read_text())
    return found["rows"] if (found["cases"], found["seed"]) == (options.cases, options.seed) else {}


def chosen(text: str) -> Sequence[str]:
    names = [*KINDS, "commands"]
    return [n for n in names if n in text.split(",")] if text else names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="", help=f"of {', '.join(KINDS)}, commands (default: all)")
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    signal.signal(signal.SIGALRM, late)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, failures = {}, []
    for name in chosen(options.kinds):
        rows[name] = commands(failures) if name == "commands" else run(name, options.cases, options.seed, failures)
        row = rows[name]
        said = f"{row['refused']:7,} refused in one line, {row['read']:7,} read, {row['else']} else, {row['seconds']:.0f} s"
        print(f"{name:14s} {said}", flush=True)
    bad = sum(row["else"] for row in rows.values())
    total = sum(row["refused"] + row["read"] + row["else"] for row in rows.values())
    print(f"{total - bad:,} of {total:,} cases refused in one line or read; {bad} else")
    if options.json:
        rows = kept(options) | rows
        gib, rows = MOST_BYTES >> 30, dict(sorted(rows.items()))
        store(options.json, cases=options.cases, seed=options.seed, address_space_gib=gib, rows=rows, failures=failures)
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:
        traceback.print_exc()
        sys.exit(3)
