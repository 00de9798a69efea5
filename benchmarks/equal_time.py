"""The older benchmark's training recipe against ours, on its own networks at quarter width, in the same time.

    python benchmarks/equal_time.py --data-root DIR [--budget 80] [--networks resnet18,cifar_convnet] [--out FILE]

CIFAR-10, T=4, four rows (IF, LIF × arctan, quadratic gate) a network. What a recipe makes of `budget` seconds: its speed is measured over
a few steps, and it then trains on as many samples as that is enough for, all different while there are enough of them, its learning rate
falling to its end. Both run in this program (the older one's loop over time is slower still): float32 and statistics per step there,
bfloat16 where it is fast and statistics over time here. Accuracy is of the whole test part, after the last step.
"""

import argparse
import itertools
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import store

import spiketrain as st
from spiketrain import assemble
from spiketrain.data.types import DataSet
from spiketrain.objective import Objective
from spiketrain.progress import Meter
from spiketrain.recipes import Recipe
from spiketrain.recipes.seed import compatible, data_options
from spiketrain.train import train_step

WARM, TIMED = 3, 9
ROWS = tuple(itertools.product(("if", "lif"), ("atan", "qgate")))


def older(neuron: str, surrogate: str, model: str) -> Recipe:
    """The older benchmark's recipe; its schedule moves a step at a time, as there are not epochs enough."""
    recipe = compatible(neuron, surrogate, 128).but(**data_options("cifar10", 10))
    return recipe.but(name="older", data="cifar10", model=model, width=0.25, steps=4, schedule_by="step")


def ours(neuron: str, surrogate: str, model: str) -> Recipe:
    """The recipe of `cifar10-strict` on that network, whose stem cannot be whitened; on all samples: epochs are too few to choose."""
    return st.recipes.get("cifar10-strict").but(
        name="ours", neuron=neuron, surrogate=surrogate, model=model, width=0.25, steps=4, whiten=False, hardest=1.0
    )


def samples_per_second(recipe: Recipe, data: DataSet) -> float:
    """Of training: a batch by the median of a few steps, which one that waited for something does not move."""
    device = assemble.choose_device("auto")
    torch.manual_seed(0)
    network = assemble.build_network(recipe, data, device).train()
    optimizer, _ = assemble.make_optimizer(recipe, network, 1000)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=assemble.uses_bf16(recipe.precision, device))
    batches, meter, objective = assemble.make_loader(recipe, data, device).train(0), Meter(), Objective("ce", recipe.smoothing)
    took = []
    for _ in range(WARM + TIMED):
        begun = time.perf_counter()
        train_step(recipe, network, optimizer, autocast, objective, *next(batches), meter)
        meter.sums()  # waits for the device
        took.append(time.perf_counter() - begun)
    return recipe.batch_size / statistics.median(took[WARM:])


def fitted(recipe: Recipe, rate: float, budget: float, available: int) -> Recipe:
    """The recipe for as many samples as `budget` seconds are enough for, a twentieth of them with a rising learning rate."""
    samples = max(recipe.batch_size, int(rate * budget))
    epochs = math.ceil(samples / available)
    return recipe.but(epochs=epochs, limit=samples // epochs, warmup_epochs=0.05 * epochs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--budget", type=float, default=80.0, help="seconds of training a run")
    parser.add_argument("--networks", default="resnet18,cifar_convnet")
    parser.add_argument("--out", type=Path, help="JSON to write, after every row")
    options = parser.parse_args()
    done: list[dict[str, Any]] = []
    for model, (neuron, surrogate) in itertools.product(options.networks.split(","), ROWS):
        line: dict[str, Any] = {"model": model, "neuron": neuron, "surrogate": surrogate}
        for make in (older, ours):
            recipe = make(neuron, surrogate, model)
            data = assemble.load_data(recipe, options.data_root)
            recipe = fitted(recipe, samples_per_second(recipe, data), options.budget, len(data.train))
            with tempfile.TemporaryDirectory() as folder:
                record = st.train(recipe, data_root=options.data_root, output=folder, quiet=True)
            line[make.__name__] = {
                "accuracy": record.test_accuracy, "seconds": record.train_seconds, "samples": recipe.epochs * recipe.limit,
                "precision": record.precision, "recipe": record.recipe,
            }  # fmt: skip
        line["ahead"] = round(line["ours"]["accuracy"] - line["older"]["accuracy"], 2)
        done.append(line)
        said = "  ".join(f"{k} {line[k]['accuracy']:5.2f} % ({line[k]['seconds']:.0f} s)" for k in ("older", "ours"))
        print(f"{model:14} {neuron:4} {surrogate:6} {said}  ahead by {line['ahead']:+.2f}", flush=True)
        if options.out:
            store(options.out, budget=options.budget, rows=done)


if __name__ == "__main__":
    main()
