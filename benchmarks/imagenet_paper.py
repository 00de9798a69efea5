"""What training on ImageNet takes on 1, 8 and 64 H200, on paper: operations, communication, loading. Nothing here ran on a GPU.

    python benchmarks/imagenet_paper.py [--json results/benchmarks/imagenet_paper.json]

Every assumption is printed. The same formulas are applied to this machine first, and compared with what `imagenet.py` measured; where
its record is not there, decoding is what `jpeg_loader.py` measured (without colour jitter), and nothing is compared.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from common import store
from scale_docs import PAPER
from torch import nn

from spiketrain import models, recipes
from spiketrain.assemble import network_from

RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"
IMAGES, EPOCHS, STEPS = 1_281_167, 100, 4
ASSUMED = {
    "peak, bf16 products of an H200 (TFLOP/s, measured on one)": 788.0,
    "share of the peak that a whole step reaches (a model; none was run)": 0.29,
    "bytes a gradient (fp32)": 4,
    "NVLink of an H200, one direction (GB/s, data sheet)": 450.0,
    "InfiniBand a GPU, one direction (GB/s, 400 Gb/s)": 50.0,
    "share of a link that a ring reaches": 0.8,
    "latency of a collective in a machine of 8 (µs)": 20.0,
    "latency of a collective among 64 (µs)": 60.0,
    "share of the gradients' time that hides behind the backward pass": 0.8,
    "images a GPU and step": 32,
    "mean pixels of an image of ImageNet by those of the benchmark's (469×387 by 400×300)": 469 * 387 / (400 * 300),
    "mean bytes of an image of ImageNet (147.9 GB by their number)": 147_897_477_120 / IMAGES,
}
A = list(ASSUMED.values())
PEAK, SHARE, GRADIENT, NVLINK, FABRIC, RING, NEAR, FAR, HIDDEN, BATCH, PIXELS, BYTES = A


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def counts(model: str) -> dict[str, float]:
    """Parameters, batch norms, and multiply-accumulates: of the stem, of a step, of an image with the stem computed once."""
    network = network_from(recipes.get("imnet-resnet18").but(model=model, kernel="reference"), 3, 1000)
    step = models.count_macs(network, (3, 224, 224))
    stem = 7 * 7 * 3 * 64 * 112 * 112
    norms = sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    return {"parameters": models.count_parameters(network), "norms": norms, "step": step, "image": stem + STEPS * (step - stem)}


def row(model: str, gpus: int, decode_ms: float) -> dict[str, Any]:
    """One network on so many GPUs."""
    n = counts(model)
    flop = 6 * n["image"]
    compute = BATCH * flop / (PEAK * 1e12 * SHARE)
    link = NVLINK if gpus <= 8 else FABRIC
    latency = 1e-6 * (NEAR if gpus <= 8 else FAR)
    gradients = 0.0 if gpus == 1 else 2 * (gpus - 1) / gpus * n["parameters"] * GRADIENT / (link * 1e9 * RING)
    statistics = 0.0 if gpus == 1 else 2 * n["norms"] * latency  # synchronised norms: one collective forward, one backward, each
    step = compute + (1 - HIDDEN) * gradients + statistics
    rate = gpus * BATCH / step
    cores = rate * decode_ms / 1e3
    return {
        "model": model, "gpus": gpus, "gflop_an_image": round(flop / 1e9, 1), "bound_images_per_s": round(gpus * PEAK * 1e12 / flop),
        "compute_ms": round(1e3 * compute, 2), "gradients_ms": round(1e3 * gradients, 2), "statistics_ms": round(1e3 * statistics, 2),
        "images_per_s": round(rate), "hours": round(EPOCHS * IMAGES / rate / 3600, 2), "cores": round(cores, 1),
        "gigabytes_per_s": round(rate * BYTES / 1e9, 2),
    }  # fmt: skip


def here(found: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(what, by the formulas, measured) on the machine of `imagenet.py`, in ms a batch."""
    ms, batch, workers = found["milliseconds"], found["batch"], found["workers"]
    decode = found["decode_cpu_ms"] * batch / workers
    return [
        ("the loader alone: decoding / cores", decode, ms["loader"]["ms"]),
        ("training: the step alone + decoding on the same cores", ms["step"]["ms"] + decode, ms["both"]["ms"]),
        (
            "two epochs of `train`: batches × step + decoding",
            2 * found["images"][0] / batch * (ms["step"]["ms"] + decode),
            1e3 * found["train_seconds"],
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / "imagenet_paper.json")
    options = parser.parse_args()
    compared = (RESULTS / "imagenet.json").exists()
    decode_here = read("imagenet")["decode_cpu_ms"] if compared else sum(read("jpeg_loader")["milliseconds"]["spiketrain"].values())
    decode_ms = decode_here * PIXELS
    for name, value in ASSUMED.items():
        print(f"- {name}: {value:,.4g}")
    print(f"- decoding of an image in one core: {decode_here:.2f} ms measured × {PIXELS:.2f} = {decode_ms:.2f} ms")
    checks = here(read("imagenet")) if compared else []
    if checks:
        print("\n| on this machine | formula, ms | measured, ms | ratio |\n| --- | --- | --- | --- |")
    for name, formula, found in checks:
        print(f"| {name} | {formula:,.0f} | {found:,.0f} | {found / formula:.2f} |")
    rows = [row(f"resnet{d}_imagenet", gpus, decode_ms) for d in (18, 34, 50) for gpus in (1, 8, 64)]
    print("\n| " + " | ".join(PAPER) + " |\n|" + " --- |" * len(PAPER))
    for r in rows:
        print("| " + " | ".join(f"{v:,}" if isinstance(v, int | float) else v for v in r.values()) + " |")
    store(
        options.json, assumed=ASSUMED, decode_ms=decode_ms, decode_measured_by="imagenet" if compared else "jpeg_loader", rows=rows,
        checks=[{"what": n, "formula_ms": round(f, 2), "measured_ms": round(m, 2)} for n, f, m in checks],
    )  # fmt: skip


if __name__ == "__main__":
    main()
