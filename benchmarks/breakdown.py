"""Where the time of one of our training steps goes: the profiler's own time of every operation, in groups that sum up to the step.

    python benchmarks/breakdown.py --network resnet18 [--batch 32] [--memory speed] [--out FILE]
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from common import device, show, store
from torch.profiler import ProfilerActivity, profile

from spiketrain import assemble
from spiketrain.optimizers import in_order_of_memory
from spiketrain.recipes import Recipe

GROUPS = (
    # first match decides
    ("norm and neuron, backward", ("_FireBackward",)),
    ("norm and neuron, forward", ("_Fire",)),
    ("convolutions, backward", ("convolution_backward", "_ConvBackward")),
    ("convolutions, forward", ("mkldnn_convolution", "convolution", "conv2d", "_Conv")),
    ("convolutions, products of few pixels", ("aten::mm",)),
    ("optimiser", ("adam", "Optimizer")),
    ("pooling", ("pool",)),
    ("residual additions", ("aten::add",)),
    ("casts of weights and gradients", ("aten::copy_", "aten::to", "aten::_to_copy")),
)
SAMPLES = {"dvs_convnet": (2, 48, 48)}


def group(name: str) -> str:
    """The group of an operation by its name."""
    return next((g for g, patterns in GROUPS if any(p.lower() in name.lower() for p in patterns)), "everything else")


def measure(recipe: Recipe, batch: int) -> list[dict[str, Any]]:
    """Rows of milliseconds by group, the whole step first; the part that no operation accounts for is a row too."""
    where = device()
    shape = SAMPLES.get(recipe.model, (3, 32, 32))
    network = assemble.network_from(recipe, shape[0], 10).to(where).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = in_order_of_memory(torch.optim.AdamW(network.parameters(), 1e-3, fused=True))
    events = len(shape) == 3 and shape[0] == 2
    x = torch.randn(*((recipe.steps,) if events else ()), batch, *shape, device=where)
    labels = torch.randint(0, 10, (batch,), device=where)

    def step() -> None:
        with torch.autocast(where.type, torch.bfloat16, enabled=assemble.uses_bf16(recipe.precision, where)):
            logits = network(x).float().mean(0)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    step(), step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        begun = time.perf_counter()
        step()
        whole = 1e3 * (time.perf_counter() - begun)
    spent: dict[str, float] = {}
    for event in seen.key_averages():
        name = group(event.key)
        spent[name] = spent.get(name, 0.0) + event.self_cpu_time_total / 1e3
    spent["between operations"] = whole - sum(spent.values())
    rows = [{"part": name, "ms": round(ms, 2), "share": round(ms / whole, 4)} for name, ms in sorted(spent.items(), key=lambda i: -i[1])]
    return [{"part": "whole step", "ms": round(whole, 2), "share": 1.0}, *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--memory", default="speed")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    recipe = Recipe(name="benchmark", model=given.network, steps=given.steps, memory=given.memory, threshold=1.0)
    rows = measure(recipe, given.batch)
    title = f"a training step of {given.network}, T={given.steps}, batch {given.batch}"
    show(title, ["part", "ms", "share"], [list(row.values()) for row in rows])
    if given.out:
        store(given.out, network=given.network, steps=given.steps, batch=given.batch, memory=given.memory, rows=rows)


if __name__ == "__main__":
    main()
