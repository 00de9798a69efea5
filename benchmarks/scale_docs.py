"""Writes the tables of docs/scale.md and docs/security.md from the records in results/benchmarks.

python benchmarks/scale_docs.py
"""

import json
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


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "results" / "benchmarks" / f"{name}.json").read_text())
    return found


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def hostile() -> str:
    rows = read("hostile")["rows"]
    kinds = [(KINDS[k], f"{r['refused']:,}", f"{r['read']:,}", f"{r['else']:,}") for k, r in rows.items()]
    sums = tuple(f"{sum(r[column] for r in rows.values()):,}" for column in ("refused", "read", "else"))
    return table(("kind", "refused in one line", "read", "anything else"), [*kinds, ("all", *sums)])


def loader() -> str:
    rows = read("jpeg_loader")["results"]
    base = rows["torchvision, Pillow"]["images_per_s"]
    lines = [(n, f"{r['images_per_s']:,.0f}", f"{r['per_core']:,.0f}", f"{r['images_per_s'] / base:.2f}") for n, r in rows.items()]
    return table(("loader", "images/s", "a core", "by torchvision with Pillow"), lines)


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
    return table(("", ""), lines)


def assumed() -> str:
    found = read("imagenet_paper")
    lines = [f"- {name}: {value:,.4g}" for name, value in found["assumed"].items()]
    by = found["decode_measured_by"]
    lines.append(f"- decoding of an image in one core, ms (by `{by}.py`, by the pixels of ImageNet): {found['decode_ms']:.2f}")
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


def paper() -> str:
    head = (
        "network",
        "GPUs",
        "GFLOP an image",
        "bound, images/s",
        "compute, ms",
        "gradients, ms",
        "norms, ms",
        "images/s",
        "hours",
        "cores",
        "GB/s",
    )
    rows = [tuple(f"{v:,}" if isinstance(v, int | float) else str(v) for v in row.values()) for row in read("imagenet_paper")["rows"]]
    return table(head, rows)


BLOCKS: dict[str, dict[str, Callable[[], str]]] = {
    "scale.md": {"loader": loader, "parts": parts, "share": share, "assumed": assumed, "paper": paper},
    "security.md": {"hostile": hostile},
}


def filled(text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """The page with its tables as the records have them."""
    for name, make in blocks.items():
        before, begin, rest = text.partition(f"<!-- {name}: begin -->\n")
        _, end, after = rest.partition(f"<!-- {name}: end -->")
        assert begin and end, name
        text = f"{before}{begin}{make()}\n{end}{after}"
    return text


def main() -> None:
    for page, blocks in BLOCKS.items():
        file = ROOT / "docs" / page
        file.write_text(filled(file.read_text(encoding="utf-8"), blocks), encoding="utf-8")
        print(file)


if __name__ == "__main__":
    main()
