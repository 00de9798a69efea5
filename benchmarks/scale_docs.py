"""Writes the tables of docs/scale.md and docs/security.md from the records in results/benchmarks.

python benchmarks/scale_docs.py
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KINDS = {
    "analysis": "analyses", "archive": "archives (zip, tar, tar.gz, tar.xz)",
    "cache": "frame caches (read: made again where they are not whole)",
    "checkpoint": "checkpoints", "commands": "command lines", "config": "the older script's YAML", "events": "recordings, 11 formats",
    "image-set": "CIFAR, MNIST, npz, folders", "jpeg": "JPEG and other images of a tree", "recipe": "recipes", "record": "records",
    "rows": "files of rows", "shards": "tar shards", "weights": "weights",
}  # fmt: skip


DEATHS = {
    "training": "kill -9 in training", "evaluation": "kill -9 in evaluation (most of the time)",
    "checkpoint": "kill -9 while a checkpoint is half-written", "cache": "kill -9 while a cache is built",
    "bench": "kill -9 of a bench, or of its run", "group": "kill -9 of one of two processes of torchrun",
    "sigterm": "SIGTERM", "full-disk": "full disk", "read-only": "file system becomes read-only",
}  # fmt: skip


def file_of(name: str) -> Path:
    return ROOT / "results" / "benchmarks" / f"{name}.json"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file_of(name).read_text())
    return found


def source(name: str, part: str = "") -> str:
    """The line that stands over a table: its record, and the command that made it, or the part of it that is shown."""
    found = read(name)
    command = re.sub(r"--shared \S+", "--shared DIR", found["commands"][part] if part else found["command"])
    return f"Record: [{name}.json](../results/benchmarks/{name}.json), `python benchmarks/{command}`.\n\n"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def hostile() -> str:
    rows = read("hostile")["rows"]
    kinds = [(KINDS[k], f"{r['refused']:,}", f"{r['read']:,}", f"{r['else']:,}") for k, r in rows.items()]
    sums = tuple(f"{sum(r[column] for r in rows.values()):,}" for column in ("refused", "read", "else"))
    seconds = sum(r["seconds"] for r in rows.values())
    made = f"{seconds:,.0f} s in one thread"
    return source("hostile") + table(("kind", "refused in one line", "read", "anything else"), [*kinds, (f"all, {made}", *sums)])


def death() -> str:
    found = read("death")
    rows = [(DEATHS[k], f"{r['survived']} of {r['tried']}", f"{r['seconds']:,}") for k, r in found["kinds"].items()]
    kills = found["kills"]
    rows.append(("kills in all", f"{kills['survived']} of {kills['tried']}", ""))
    return source("death") + table(("disturbance, at a random moment", "survived", "seconds"), rows)


def machines() -> str:
    found = read("two_machines")
    rows = [(f"{e['second']:.0f}", e["event"], str(e["epochs_done"])) for e in found["events"]]
    accuracy, loss = found["test_accuracy"], found["train_loss"]
    undisturbed = ", ".join(f"{a:.2f}" for a in accuracy["undisturbed"])
    losses = ", ".join(f"{v:.4f}" for v in loss["undisturbed"])
    end = (
        f"\n\nThe test accuracy after {found['epochs']} epochs was {accuracy['run']:.2f} %,"
        f" of undisturbed runs of one process with three seeds\n{undisturbed} %;"
        f" the last training loss {loss['run']:.4f}, of those {losses}."
    )
    return source("two_machines") + table(("second", "event", "epochs done"), rows) + end


def losses() -> str:
    rows = [
        (r["optimizer"], r["dtype"], f"{r['first_step']:.1e}", f"{r['largest']:.1e}", f"{r['first_loss']:.3f} → {r['last_loss']:.3f}")
        for r in read("processes")["losses"]
    ]
    head = ("optimiser", "sums in", "apart in the first step", "at most in 20 steps", "loss")
    return source("processes", "losses") + table(head, rows)


def speed() -> str:
    rows = [
        (r["network"], f"{r['one_process_ms']:,.1f}", f"{r['two_processes_ms']:,.1f}", f"{r['ratio']:.2f}")
        for r in read("processes")["speed"]
    ]
    head = ("a step of 64 samples, T=4", "one process, two threads: ms", "two processes, one thread each: ms", "throughput of two by one")
    return source("processes", "speed") + table(head, rows)


def zero() -> str:
    found = read("processes")["zero"]
    rows = [
        (what, f"{found[f'{kind}_ms']:,.1f}", f"{found[f'{kind}_optimizer_bytes'] / 1e6:.1f}")
        for kind, what in (("whole", "whole in each of two processes"), ("zero", "shared out (ZeRO)"))
    ]
    return source("processes", "zero") + table(("AdamW's state, small_convnet", "a step, ms", "of the state in a process, MB"), rows)


def loader() -> str:
    rows = read("jpeg_loader")["results"]
    base = rows["torchvision, Pillow"]["images_per_s"]
    lines = [(n, f"{r['images_per_s']:,.0f}", f"{r['per_core']:,.0f}", f"{r['images_per_s'] / base:.2f}") for n, r in rows.items()]
    return source("jpeg_loader") + table(("loader", "images/s", "a core", "by torchvision with Pillow"), lines)


def parts() -> str:
    lines = [(name, part, f"{ms:.3f}") for name, times in read("jpeg_loader")["milliseconds"].items() for part, ms in times.items()]
    return table(("", "part", "ms"), lines)


def share() -> str:
    found = read("imagenet")
    ms = {name: f"{row['ms']:,.0f} ms" for name, row in found["milliseconds"].items()}
    each = f"a batch of {found['batch']}"
    lines = [
        (f"the loader alone, {each}", ms["loader"]),
        (f"a training step alone, {each}, {found['precision']}", ms["step"]),
        (f"both, {each}", ms["both"]),
        ("of this, waiting for the loader", f"{ms['waiting']}: {100 * found['share_waiting']:.1f} %"),
        ("processor time of decoding, of all of it", f"{100 * found['share_of_work']:.1f} %"),
        ("decoding of an image, one core, with colour jitter", f"{found['decode_cpu_ms']:.2f} ms"),
        (f"two epochs of {found['images'][0]} images", f"{found['train_seconds']:.0f} s"),
    ]
    return source("imagenet") + table(("", ""), lines)


def assumed() -> str:
    found = read("imagenet_paper")
    lines = [f"- {name}: {value:,.4g}" for name, value in found["assumed"].items()]
    by = found["decode_measured_by"]
    lines.append(f"- decoding of an image in one core, ms (measured by `{by}.py`, by the pixels of ImageNet): {found['decode_ms']:.2f}")
    if not found["checks"]:
        return "\n".join(lines)
    checks = [
        (c["what"], f"{c['formula_ms']:,.0f}", f"{c['measured_ms']:,.0f}", f"{c['measured_ms'] / c['formula_ms']:.2f}")
        for c in found["checks"]
    ]
    return (
        "\n".join(lines)
        + "\n\nThe same formulas on this machine, where something was measured:\n\n"
        + table(("", "formula, ms", "measured, ms", "ratio"), checks)
    )


PAPER = (
    "network", "GPUs", "GFLOP an image", "bound, images/s", "compute, ms", "gradients, ms", "norms, ms", "images/s",
    "hours", "cores", "GB/s",
)  # fmt: skip
"""Columns of the table of what a full run takes."""


def paper() -> str:
    rows = [tuple(f"{v:,}" if isinstance(v, int | float) else str(v) for v in row.values()) for row in read("imagenet_paper")["rows"]]
    return source("imagenet_paper") + table(PAPER, rows)


Block = tuple[str, str, Callable[[], str]]
"""(record, the part of it that must be there or "", what makes the text)."""
BLOCKS: dict[str, dict[str, Block]] = {
    "scale.md": {
        "losses": ("processes", "losses", losses), "speed": ("processes", "speed", speed), "zero": ("processes", "zero", zero),
        "machines": ("two_machines", "", machines), "death": ("death", "", death), "loader": ("jpeg_loader", "", loader),
        "parts": ("jpeg_loader", "", parts), "share": ("imagenet", "", share), "assumed": ("imagenet_paper", "", assumed),
        "paper": ("imagenet_paper", "", paper),
    },
    "security.md": {"hostile": ("hostile", "", hostile)},
}  # fmt: skip


def filled(text: str, blocks: dict[str, Block]) -> str:
    """The page with its tables as the records have them, and a line where there is no record."""
    for name, (record, part, make) in blocks.items():
        before, begin, rest = text.partition(f"<!-- {name}: begin -->\n")
        _, end, after = rest.partition(f"<!-- {name}: end -->")
        assert begin and end, name
        there = file_of(record).exists() and (not part or part in read(record))
        made = make() if there else f"No record yet; `python benchmarks/{record}.py` makes it."
        text = f"{before}{begin}{made}\n{end}{after}"
    return text


def main() -> None:
    for page, blocks in BLOCKS.items():
        file = ROOT / "docs" / page
        file.write_text(filled(file.read_text(encoding="utf-8"), blocks), encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
