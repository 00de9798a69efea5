"""How fast are the convolutions alone? Each layer's forward, gradient by input and gradient by weight, by dtype and memory layout.

    python benchmarks/convolutions.py --network cifar_convnet [--batch 64] [--rounds 3] [--out FILE]

Their sum is the least that a training step of the network can cost while its convolutions are torch's. The first convolution of
an image that is shown at every step counts once and has no gradient by its input.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from common import device, in_turns, options, show, store, summary
from networks import NETWORKS, Convolution, convolutions, tiny

PASSES = ("forward", "by input", "by weight")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def passes(layer: Convolution, dtype: torch.dtype, layout: torch.memory_format, where: torch.device) -> dict[str, Callable[[], Any]]:
    """The passes of a layer, each over tensors of its own that are at hand: input, weight, gradient by the output."""
    pad, stride = [layer.kernel // 2] * 2, [layer.stride] * 2

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=where).to(dtype).to(memory_format=layout)

    x = tensor(layer.images, layer.inputs, layer.size, layer.size)
    w = tensor(layer.outputs, layer.inputs, layer.kernel, layer.kernel)
    g = tensor(layer.images, layer.outputs, layer.out, layer.out)

    def backward(by_input: bool) -> Any:
        mask = [by_input, not by_input, False]
        return torch.ops.aten.convolution_backward(g, x, w, None, stride, pad, [1, 1], False, [0, 0], 1, mask)

    runs: dict[str, Callable[[], Any]] = {
        "forward": lambda: torch.ops.aten.convolution(x, w, None, stride, pad, [1, 1], False, [0, 0], 1),
        "by weight": lambda: backward(False),
    }
    return runs if layer.first else runs | {"by input": lambda: backward(True)}


def measure(layer: Convolution, dtype: str, layout: str, rounds: int) -> dict[str, float]:
    """Median seconds of each pass of the layer."""
    runs = passes(layer, DTYPES[dtype], LAYOUTS[layout], device())
    in_turns(runs, 1)  # creates the library's kernels
    return {name: summary(times)["ms"] / 1e3 for name, times in in_turns(runs, rounds).items()}


def bound(layers: list[Convolution], dtype: str, layout: str, rounds: int) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of all convolutions of a training step, and a row for each different layer."""
    rows = []
    for layer, count in Counter(layers).items():
        seconds = measure(layer, dtype, layout, rounds)
        rows.append({"layer": str(layer), "count": count, "gflop": round(layer.flop / 1e9, 2), "dtype": dtype, "layout": layout}
                    | {"ms": {p: round(1e3 * s, 2) for p, s in seconds.items()}}
                    | {"gflop_per_s": {p: round(layer.flop / s / 1e9, 1) for p, s in seconds.items()}})  # fmt: skip
    return sum(row["count"] * sum(row["ms"].values()) for row in rows) / 1e3, rows


def everything(layers: list[Convolution], dtype: str, layout: str) -> Callable[[], None]:
    """All convolutions of a training step, one after the other, as one run; equal layers share their tensors."""
    made = {layer: passes(layer, DTYPES[dtype], LAYOUTS[layout], device()) for layer in dict.fromkeys(layers)}

    def run() -> None:
        for layer in layers:
            for one in made[layer].values():
                one()

    return run


def main() -> None:
    parser = options(__doc__, 3)
    parser.add_argument("--network", default="cifar_convnet", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=0, help="0: the network's own")
    parser.add_argument("--steps", type=int, default=0, help="0: the network's own")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    given = parser.parse_args()
    network = NETWORKS[given.network]
    if given.quick:
        network = tiny(network)
    batch, steps = given.batch or network.batch, given.steps or network.steps
    layers = convolutions(network, batch, steps)
    sums: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for dtype in given.dtypes.split(","):
        for layout in given.layouts.split(","):
            total, found = bound(layers, dtype, layout, given.rounds)
            rows += found
            sums[f"{dtype} {layout}"] = {"seconds": round(total, 4), "images_per_s": round(batch / total, 1)} | {
                f"{p}_s": round(sum(r["count"] * r["ms"].get(p, 0) for r in found) / 1e3, 4) for p in PASSES
            }
            table = [[r["layer"], r["count"], r["gflop"], *(r[unit].get(p, "") for unit in ("ms", "gflop_per_s") for p in PASSES)]
                     for r in found]  # fmt: skip
            show(f"{network.name}, T={steps}, batch {batch}, {dtype} {layout}: {total:.3f} s a step, {batch / total:.1f} images/s",
                 ["layer", "×", "GFLOP", *(f"{p} ms" for p in PASSES), *(f"{p} GFLOP/s" for p in PASSES)], table)  # fmt: skip
    if given.out:
        store(given.out, benchmark="convolutions", network=network.name, batch=batch, steps=steps, sums=sums, layers=rows)


if __name__ == "__main__":
    main()
