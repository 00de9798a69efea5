"""Inference: networks in evaluation mode, no gradients. Us, the peers, and the network as an ANN, one sample and a batch at a time.

    python benchmarks/inference.py [--networks resnet18 cifar_convnet dvs_convnet] [--rounds 5] [--quick] [--out FILE]

Everyone has the same network and weights and is timed in turn; the norms' biases are drawn from 0 to 2, so that neurons fire. First ours
are held to SpikingJelly and to the reference kernel in float64, where no rounding changes a spike: where a check fails, no time is
printed and the exit status is 1. "With firing rates" is `spiketrain.evaluate.evaluate`: what `train` does after an epoch. A side that is
more than twenty times slower than ours has one turn.
"""

from collections.abc import Callable
from typing import Any

import peers
import torch
from common import Gate, device, in_turns, options, show, store, summary
from correctness import fresh_weights
from networks import CLASSES, NETWORKS, Network, tiny
from sides import NCHW, Side, Step, ours, sides, spikingjelly
from torch import Tensor, nn

from spiketrain.evaluate import evaluate

CLOSE = 1e-9
"""Of the logits in float64, relative to the largest."""
LEFT_OUT = ("CUDA graphs", "reference", "fp32 NHWC", "bf16 NCHW", "eager", "batch B,")
"""Words in labels of sides that are none of those asked for here: ours in fp32 is put in again."""


class Inference(Step):
    """A forward pass of a side in evaluation mode."""

    def logits(self) -> Tensor:
        """`[T,B,classes]`."""
        self.module.eval()
        with torch.no_grad(), torch.autocast(device().type, torch.bfloat16, enabled=self.side.bf16):
            found: Tensor = self.module(self.x)
        return found

    def __call__(self) -> None:
        self.logits()


def firing(network: Network) -> nn.Module:
    """Weights for everyone."""
    weights = fresh_weights(network, network.steps, device())
    for norm in weights.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.bias, 0, 2)
    return weights


def hold(gate: Gate, network: Network, weights: nn.Module) -> None:
    """Logits of ours by every way against the reference kernel's, and SpikingJelly's, in float64."""

    def found(build: Callable[[Network, int], nn.Module]) -> Tensor:
        one = Inference(Side("", "", build, False, NCHW), network, network.steps, 2, weights)
        one.double()
        return one.logits()

    wanted = found(ours(kernel="reference"))
    others = {"ours": ours()} | ({"SpikingJelly": spikingjelly(NCHW)} if "spikingjelly" in peers.found() else {})
    for name, build in others.items():
        off = float((found(build) - wanted).abs().max() / wanted.abs().max())
        gate.check(f"{name}, {network.name}, T={network.steps}, float64: logits", off, CLOSE)


def measure(network: Network, batch: int, rounds: int, weights: nn.Module) -> list[dict[str, Any]]:
    """A row for everyone."""
    chosen = [s for s in sides(network.steps) if s.name == "ours" or not any(word in s.label for word in LEFT_OUT)]
    made = {side.label: Inference(side, network, network.steps, batch, weights) for side in chosen}
    runs: dict[str, Any] = dict(made)
    whole = made["ours, bf16 NHWC"]
    autocast = torch.autocast(device().type, torch.bfloat16)
    runs["ours, bf16 NHWC, with firing rates"] = lambda: evaluate(whole.module, [(whole.x, whole.labels)], autocast, CLASSES)  # type: ignore[arg-type]
    for run in runs.values():
        run(), run()  # compiles
    times = {name: summary(t) for name, t in in_turns(runs, rounds, 1, "ours, bf16 NHWC", 20.0).items()}
    return [
        {"model": network.name, "batch": batch, "side": name, **f, "images_per_s": round(1e3 * batch / f["ms"], 2)}
        | {"times_ours": round(f["ms"] / times["ours, bf16 NHWC"]["ms"], 3)}
        for name, f in times.items()
    ]


def main() -> None:
    parser = options(__doc__, 5)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "cifar_convnet", "dvs_convnet"], choices=NETWORKS)
    given = parser.parse_args()
    peers.say_missing()
    chosen = [tiny(NETWORKS[n]) if given.quick else NETWORKS[n] for n in given.networks]
    weights, gate = {n.name: firing(n) for n in chosen}, Gate()
    for network in chosen:
        hold(gate, network, weights[network.name])
    checks, rows = gate.close(), []
    for network in chosen:
        for batch in (1, network.batch):
            found = measure(network, batch, given.rounds, weights[network.name])
            show(f"inference of {network.name}, T={network.steps}, batch {batch}, {device()}",
                 ["", "ms", "quartiles", "n", "samples/s", "× ours"],
                 [[r["side"], r["ms"], "{:.5g} … {:.5g}".format(*r["quartiles_ms"]), r["n"], r["images_per_s"], r["times_ours"]]
                  for r in found])  # fmt: skip
            rows += found
    if given.out:
        store(given.out, benchmark="inference", peers=peers.found(), checks=checks, rows=rows)


if __name__ == "__main__":
    main()
