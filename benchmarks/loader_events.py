"""Is an epoch over cached frames bound by loading? Samples/s of the loader alone, and of whole training steps, in turns.

    python benchmarks/loader_events.py [--rounds 5] [--json results/benchmarks/loader_events.json]

The data are made: uint8 counts in the shape of CIFAR10-DVS's cached frames (T=10, 2 × 48 × 48), behind a memory map as the cache
has them. The step is the older benchmark's: dvs_convnet, LIF, batch 128.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import in_turns, store, summary

from spiketrain import recipes
from spiketrain.assemble import build_network, make_loader, make_optimizer, uses_bf16
from spiketrain.data.types import DataSet, Split
from spiketrain.objective import Objective
from spiketrain.progress import Meter
from spiketrain.train import train_step

AUGMENTS = ("", "eventmix", "cutmix", "mixup", "randaugment")


def made(folder: Path, n: int, steps: int, side: int) -> DataSet:
    rng = np.random.default_rng(0)
    file = np.lib.format.open_memmap(folder / "frames.npy", "w+", np.uint8, (n, steps, 2, side, side))
    for i in range(n):
        file[i] = rng.poisson(0.4, (steps, 2, side, side))
    file.flush()
    split = Split(torch.from_numpy(np.load(folder / "frames.npy", mmap_mode="c")), torch.from_numpy(rng.integers(0, 10, n)), "made")
    return DataSet("made", split, split, tuple("0123456789"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks/loader_events.json"))
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = made(Path(folder), 2 * options.batch, 10, 48)
        base = recipes.Recipe(name="made", data="made", model="dvs_convnet", steps=10, batch_size=options.batch, epochs=1)
        network = build_network(base, data, device).train()
        optimizer, _ = make_optimizer(base, network, 2)
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16("auto", device))
        for augment in AUGMENTS:
            loader = make_loader(base.but(event_augment=augment), data, device)
            inputs, labels = next(loader.train(0))

            def step(inputs: torch.Tensor = inputs, labels: torch.Tensor = labels) -> None:
                train_step(base, network, optimizer, autocast, Objective(), inputs, labels, Meter())

            if not rows:
                step()  # compiles
            times = in_turns({"loader": lambda loader=loader: next(loader.train(0)), "step": step}, options.rounds)
            found = {name: summary(t) | {"samples_per_s": round(1e3 * options.batch / summary(t)["ms"], 1)} for name, t in times.items()}
            rows.append({"event_augment": augment, "results": found, "ratio": round(found["step"]["ms"] / found["loader"]["ms"], 1)})
            speed = {name: f"{r['samples_per_s']:,.0f} samples/s" for name, r in found.items()}
            print(f"{augment or 'plain':10s} loader {speed['loader']}, step {speed['step']}: {rows[-1]['ratio']}x", flush=True)
    store(options.json, rounds=options.rounds, batch=options.batch, rows=rows)


if __name__ == "__main__":
    main()
