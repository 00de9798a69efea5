"""One LIF layer, forward and backward, with and without a batch norm before it: us, the peers, and the least memory traffic.

    python benchmarks/kernel.py [--shape 4,32,128,32,32] [--rounds 9] [--repeats 5] [--quick] [--out FILE]

Everyone has tau 2, threshold 1, the arctan surrogate and a hard reset without gradient, and is timed in turn: so many calls one behind
the other, of which the first, which finds nothing of its own in the caches, is also told by itself. Before that ours are held to the
reference and to SpikingJelly; where a check fails, no time is printed and the exit status is 1.

The least memory traffic, with b the bytes of x:
  neuron alone, 5·b: forward reads x, writes s; backward reads x and the gradient by s, writes the gradient by x;
  with batch norm, 8·b: forward reads x twice, writes s; backward reads x and the gradient by s twice, writes the gradient by x.
It is measured in the same turns as copy(x→s) + add(x, grad_s→grad_x), and three sums over x more with batch norm: streaming
operations over memory that is there already, each the quickest of several.
"""

from collections.abc import Callable
from typing import Any

import peers
import torch
from common import Gate, device, fast_kernels, in_turns, options, show, store, summary
from torch import Tensor, nn

from spiketrain.layers import BatchNorm, fire
from spiketrain.neurons import Neuron, Spec

Layer = Callable[[Tensor], Tensor]
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHARE = {"fp32": 1e-5, "bf16": 2e-2}
"""Of spikes that may differ where a batch norm's statistics are rounded otherwise: in bf16 a norm on its own rounds its result."""
CLOSE = {"fp32": 1e-5, "bf16": 2**-7}
"""Of the largest gradient: by how much a gradient may differ."""


def ours(kernel: str, channels: int = 0) -> Layer:
    """Our neuron by this kernel, behind a batch norm of so many channels unless that is 0."""
    neuron = Spec("lif", 2.0, 1.0, "atan", 2.0, "hard", True, kernel=kernel).make()
    return Normed(BatchNorm(channels), neuron).to(device()).train() if channels else neuron.to(device())


class Normed(nn.Module):
    """Our batch norm and neuron, as our networks put them together."""

    def __init__(self, norm: BatchNorm, neuron: Neuron) -> None:
        super().__init__()
        self.norm, self.neuron = norm, neuron

    def forward(self, x: Tensor) -> Tensor:
        return fire(self.norm, self.neuron, x, len(x))


def folded(norm: nn.Module, layer: Layer) -> Layer:
    """A peer's way: torch's batch norm over time and batch, then its layer."""
    return lambda x: layer(norm(x.flatten(0, 1)).unflatten(0, x.shape[:2]))


def theirs(channels: int) -> dict[str, Layer]:
    """Every peer that is here, behind torch's batch norm of so many channels unless that is 0."""
    layers: dict[str, Layer] = {"ReLU": torch.relu}
    if "spikingjelly" in peers.found():
        layers |= {"SpikingJelly": peers.spikingjelly_layer(False), "SpikingJelly, compiled": peers.spikingjelly_layer(True)}
    if "snntorch" in peers.found():
        layers |= {"snnTorch Leaky": peers.snntorch_layer(False), "snnTorch Leaky, compiled": peers.snntorch_layer(True)}
    if "norse" in peers.found():
        layers["Norse LIFBox"] = peers.norse_layer()
    if not channels:
        return layers
    return {name: folded(nn.BatchNorm2d(channels).to(device()).train(), layer) for name, layer in layers.items()}


def tensors(shape: list[int], dtype: str, layout: str) -> tuple[Tensor, Tensor]:
    """Input current and the gradient by the spikes."""
    generator = torch.Generator().manual_seed(0)

    def draw(mean: float) -> Tensor:
        flat = (torch.randn(shape, generator=generator) + mean).to(device(), DTYPES[dtype]).flatten(0, 1)
        return flat.contiguous(memory_format=LAYOUTS[layout]).unflatten(0, shape[:2])

    return draw(0.6), draw(0.0)


def run(layer: Layer, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes and the gradient by x; a layer's own parameters get theirs too."""
    x = x.detach().requires_grad_()
    s = layer(x)
    s.backward(g.to(s.dtype))
    assert x.grad is not None
    return s.detach(), x.grad


def compare(gate: Gate, name: str, found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], share: float, close: float) -> None:
    """Spikes differ at most in this share of places, and gradients by more than `close` of the largest in no more of them."""
    gate.check(f"{name}: spikes that differ", float((found[0].float() != wanted[0].float()).float().mean()), share)
    a, b = found[1].float(), wanted[1].float()
    wrong = ~((a - b).abs() <= close * b.abs().max())
    gate.check(f"{name}: gradients off by more than {close:.1g} of the largest", float(wrong.float().mean()), share)


def hold(gate: Gate, shape: list[int], quick: bool, dtype: str, layout: str, channels: int) -> None:
    """Ours by every kernel against the reference, and against SpikingJelly where it is here."""
    x, g = tensors(shape, dtype, layout)
    what = f"{dtype} {layout}{', batch norm' if channels else ''}"
    wanted = run(ours("reference", channels), x, g)
    share, close = SHARE[dtype] if channels else 0.0, CLOSE[dtype]
    for kernel in fast_kernels(quick):
        compare(gate, f"{kernel}, {what}", run(ours(kernel, channels), x, g), wanted, share, close)
    if "spikingjelly" in peers.found() and dtype == "fp32" and not channels:  # in bf16 its potential is bf16
        compare(gate, f"SpikingJelly, {what}", wanted, run(peers.spikingjelly_layer(False), x, g), SHARE[dtype], close)


def quickest(operations: list[Callable[[], Any]], repeats: int) -> Callable[[], Any]:
    """The operation with the least time of several that move the same bytes."""
    for operation in operations:
        operation()
    times = in_turns({str(i): operation for i, operation in enumerate(operations)}, 3, repeats)
    return operations[min(range(len(operations)), key=lambda i: min(times[str(i)]))]


def traffic(x: Tensor, g: Tensor, norm: bool, repeats: int) -> Callable[[], Any]:
    """The least memory traffic of a layer as streaming operations."""
    x, g = (y.as_strided((y.numel(),), (1,)) for y in (x, g))  # in the order of memory: what the others read, no copy of it
    out = torch.empty_like(x)
    copy = quickest([lambda: out.copy_(x), lambda: torch.neg(x, out=out)], repeats)
    add = quickest([lambda: torch.add(x, g, out=out), lambda: torch.mul(x, g, out=out)], repeats)
    read = quickest([x.sum, x.amax, lambda: x.view(-1, 1024).sum(1)], repeats)
    return lambda: (copy(), add(), *((read(), read(), read()) if norm else ()))


def measure(shape: list[int], dtype: str, layout: str, channels: int, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """A row for everyone: times and ratios."""
    x, g = tensors(shape, dtype, layout)
    layers = {"ours": ours("auto", channels), "ours, reference": ours("reference", channels), **theirs(channels)}
    runs: dict[str, Callable[[], Any]] = {"least memory traffic": traffic(x, g, bool(channels), repeats)}
    runs |= {name: (lambda layer=layer: run(layer, x, g)) for name, layer in layers.items()}
    for one in runs.values():
        for _ in range(3):  # compiles; snnTorch's once more when its state has a shape
            one()
    first: dict[str, list[float]] = {name: [] for name in runs}
    found = {name: summary(t) for name, t in in_turns(runs, rounds, repeats, "ours", 30.0, first).items()}
    alone = {name: summary(t)["ms"] for name, t in first.items()}
    least, our = found["least memory traffic"]["ms"], found["ours"]["ms"]
    return [
        {"side": name, "dtype": dtype, "layout": layout, "batch_norm": bool(channels), **f}
        | {"times_least": round(f["ms"] / least, 3), "times_ours": round(f["ms"] / our, 3)}
        | {"first_ms": alone[name], "first_times_ours": round(alone[name] / alone["ours"], 3)}
        for name, f in found.items()
    ]


def main() -> None:
    parser = options(__doc__, 9)
    parser.add_argument("--shape", default="4,32,128,32,32", help="T,B,C,H,W")
    parser.add_argument("--repeats", type=int, default=5, help="calls a turn")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--layouts", default="NCHW,NHWC")
    parser.add_argument("--norms", default="without,with", help="a batch norm before the neuron")
    given = parser.parse_args()
    shape = [3, 2, 8, 32, 32] if given.quick else [int(n) for n in given.shape.split(",")]
    cases = [(d, m, shape[2] if n == "with" else 0)
             for n in given.norms.split(",") for d in given.dtypes.split(",") for m in given.layouts.split(",")]  # fmt: skip
    peers.say_missing()
    gate = Gate()
    for case in cases:
        hold(gate, shape, given.quick, *case)
    checks, rows = gate.close(), []
    for dtype, layout, channels in cases:
        found = measure(shape, dtype, layout, channels, given.rounds, given.repeats)
        rows += found
        title = f"LIF layer {shape}, {dtype} {layout}{', batch norm before it' if channels else ''}, {device()}: forward + backward"
        show(title, ["", "ms", "quartiles", "× least traffic", "× ours", "first call, ms", "× ours"],
             [[r["side"], r["ms"], "{:.4g} … {:.4g}".format(*r["quartiles_ms"]), r["times_least"], r["times_ours"], r["first_ms"],
               r["first_times_ours"]] for r in found])  # fmt: skip
    if given.out:
        store(given.out, benchmark="kernel", shape=shape, peers=peers.found(), checks=checks, rows=rows)


if __name__ == "__main__":
    main()
