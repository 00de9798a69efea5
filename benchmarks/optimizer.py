"""An optimiser's step alone: Muon and AdamW as our programs make it, and as timm and torch do.

    python benchmarks/optimizer.py [--networks fast_convnet4 resnet18 cifar_convnet] [--rounds 9] [--quick] [--out FILE]

Both have the same weights (channels last), gradients and state, and are timed in turn. First two steps of ours are held to two of theirs:
where a weight differs by more than `CLOSE` of the way that it went, no time is printed and the exit status is 1.
"""

import copy

import torch
from common import Gate, device, in_turns, options, show, store, summary
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim import Optimizer

from spiketrain.models import MODELS, build
from spiketrain.optimizers import quick

CLOSE = {"muon": 0.02, "adamw": 1e-3}
"""Muon's products are of bfloat16."""


def made(kind: str, network: nn.Module, ours: bool) -> tuple[nn.Module, Optimizer]:
    """A copy of the network with gradients, and its optimiser."""
    network = copy.deepcopy(network).to(device(), memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    for p in filter(lambda p: p.requires_grad, network.parameters()):
        p.grad = torch.randn(p.shape, generator=generator).to(p)
        p.grad = p.grad.contiguous(memory_format=torch.channels_last) if p.dim() == 4 else p.grad
    extra = {"fused": True} if kind == "adamw" else {"momentum": 0.95}
    optimizer = create_optimizer_v2(network, kind, lr=0.01, weight_decay=0.01, **extra)  # type: ignore[arg-type]
    return network, quick(optimizer) if ours else optimizer


def hold(gate: Gate, kind: str, name: str, network: nn.Module) -> dict[str, Optimizer]:
    """Two steps of ours against theirs; both optimisers, for the times."""
    (mine, fast), (theirs, plain) = made(kind, network, True), made(kind, network, False)
    for optimizer in (fast, plain):
        optimizer.step(), optimizer.step()  # the first of them makes the state
    for (weight, start), ours, p in zip(network.named_parameters(), mine.parameters(), theirs.parameters(), strict=True):
        if not p.requires_grad:
            continue
        off = float((ours - p).detach().norm() / (p - start.to(p)).detach().norm())
        gate.check(f"{kind}, {name}, {weight}: of the way that it went", off, CLOSE[kind])
    return {"ours": fast, "timm" if kind == "muon" else "torch": plain}


def main() -> None:
    parser = options(__doc__, 9)
    parser.add_argument("--networks", nargs="+", default=["fast_convnet4", "resnet18", "cifar_convnet"], choices=MODELS)
    given = parser.parse_args()
    chosen = ["digits_convnet"] if given.quick else given.networks
    gate, rows = Gate(), []
    for name in chosen:
        torch.manual_seed(0)
        network = build(name)
        for kind in ("muon", "adamw"):
            held = hold(gate, kind, name, network)
            found = {side: summary(t) for side, t in in_turns({s: o.step for s, o in held.items()}, given.rounds).items()}
            rows += [
                {"model": name, "optimizer": kind, "side": side, **f, "times_ours": round(f["ms"] / found["ours"]["ms"], 3)}
                for side, f in found.items()
            ]
    checks = gate.close()
    show(f"a step of the optimiser, {device()}", ["", "", "", "ms", "quartiles", "× ours"],
         [[r["model"], r["optimizer"], r["side"], r["ms"], "{:.4g} … {:.4g}".format(*r["quartiles_ms"]), r["times_ours"]]
          for r in rows])  # fmt: skip
    if given.out:
        store(given.out, benchmark="optimizer", checks=checks, rows=rows)


if __name__ == "__main__":
    main()
