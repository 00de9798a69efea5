"""Two processes with one thread each against one process with two: the same losses, and how fast.

    python benchmarks/processes.py [--only speed] [--rounds 3] [--store results/benchmarks/processes.json]

First the losses of 20 steps of the digits recipe, with several optimisers, in float64 and float32: no time is printed unless those in
float64 agree to 1e-5. Then the seconds of a training step (batches of 64, T=4) of several networks on noise, in turns; every turn is a
new process or group of processes. Last, what ZeRO (torch's `ZeroRedundancyOptimizer`) does to the step and to the optimiser's memory.
`--worker` is what each process runs.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import store
from torch.distributed.optim import ZeroRedundancyOptimizer

import spiketrain as st
from spiketrain import assemble, processes
from spiketrain.data.images import in_memory
from spiketrain.data.types import DataSet
from spiketrain.objective import Objective
from spiketrain.progress import Meter
from spiketrain.record import command_line
from spiketrain.train import train_step

STEPS, BOUND, WARM = 20, 1e-5, 3
NETWORKS: dict[str, dict[str, Any]] = {
    "small_convnet": {"model": "small_convnet", "precision": "fp32"},
    "small_convnet, bf16": {"model": "small_convnet", "precision": "bf16"},
    "resnet18, quarter width": {"model": "resnet18", "width": 0.25, "precision": "fp32"},
    "digits_convnet": {"model": "digits_convnet", "precision": "fp32", "data": "digits"},
}
OPTIMISERS = ("sgd", "adamw", "muon")


def noise() -> DataSet:
    """512 images of noise, 3 × 32 × 32: what a step costs does not depend on what is in them."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, 10, (512,), generator=draw)
    return in_memory("noise", (images, labels), (images, labels), "0123456789")


def work(job: dict[str, Any]) -> dict[str, Any]:
    """`steps` training steps by a recipe, in this process or group of processes: each one's loss and seconds."""
    with processes.join(torch.device("cpu")) as device:
        recipe = st.recipes.get("digits").but(**job["recipe"])
        data = assemble.load_data(recipe, None) if recipe.data == "digits" else noise()
        loader = assemble.make_loader(recipe, data, device)
        torch.manual_seed(recipe.seed)
        kind = torch.float64 if job.get("wide") else torch.float32
        network = assemble.build_network(recipe, data, device).to(kind).train(job.get("train", True))
        made = network if not job.get("zero") else torch.nn.Linear(1, 1)
        optimizer, _ = assemble.make_optimizer(recipe, made, loader.batches)
        if job.get("zero"):
            trained = [p for p in network.parameters() if p.requires_grad]
            optimizer = ZeroRedundancyOptimizer(trained, torch.optim.AdamW, lr=recipe.lr)
        spread, autocast = processes.spread(network, device), torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16")
        losses, seconds, batch = [], [], 0
        for epoch in range(job["steps"]):
            for i, (inputs, labels) in enumerate(loader.train(epoch)):
                meter, begun = Meter(), time.perf_counter()
                train_step(recipe, spread, optimizer, autocast, Objective(), inputs.to(kind), labels, meter, loader.size(i))
                seconds.append(time.perf_counter() - begun)
                sums = [sum(column) for column in zip(*processes.gather(meter.sums()), strict=True)]
                losses.append(sums[0] / sums[2])
                batch += 1
                if batch == job["steps"]:
                    state = (optimizer.optim if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer).state
                    kept = sum(t.numel() * t.element_size() for s in state.values() for t in s.values() if torch.is_tensor(t))
                    return {"losses": losses, "seconds": seconds, "optimizer_bytes": processes.gather(kept)}
    raise AssertionError


def launch(count: int, job: dict[str, Any]) -> dict[str, Any]:
    """The job in `count` processes on two cores: two threads for one, one for each of two."""
    words = [__file__, "--worker", json.dumps(job)]
    if count > 1:
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(2 // count)}
    made = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    for line in made.stdout.splitlines():
        with contextlib.suppress(ValueError):
            return dict(json.loads(line))
    raise SystemExit(made.stderr)


def agreement() -> list[dict[str, Any]]:
    """The largest difference of the losses of `STEPS` steps between one process and two."""
    rows = []
    for optimizer in OPTIMISERS:
        for wide in (True, False):
            recipe = {"optimizer": optimizer, "lr": 0.004 if optimizer == "adamw" else 0.02, "warmup_epochs": 0.0}
            job = {"recipe": recipe, "steps": STEPS, "wide": wide}
            one, two = (launch(n, job)["losses"] for n in (1, 2))
            apart = [abs(a - b) for a, b in zip(one, two, strict=True)]
            row = {"optimizer": optimizer, "dtype": "float64" if wide else "float32", "first_step": apart[0], "largest": max(apart)}
            rows.append(row | {"first_loss": one[0], "last_loss": one[-1]})
            print(f"{optimizer:>6} {row['dtype']}: losses differ by {apart[0]:.1e} in the first step, at most {max(apart):.1e} in {STEPS}")
            if wide and max(apart) > BOUND:
                raise SystemExit("the losses do not agree: no times")
    return rows


def speed(name: str, changes: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds of a step of one process with two threads and of two with one, in turns."""
    recipe = {"batch_size": 64, "steps": 4, "data": "noise", "kernel": "auto", **changes}
    recipe["data"] = "digits" if recipe["data"] == "digits" else "custom"
    job = {"recipe": recipe, "steps": WARM + (30 if recipe["data"] == "digits" else 10)}
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, found in times.items():
            found.append(statistics.median(launch(count, job)["seconds"][WARM:]))
    one, two = (statistics.median(times[n]) for n in (1, 2))
    row = {"network": name, "one_process_ms": round(1e3 * one, 2), "two_processes_ms": round(1e3 * two, 2), "ratio": round(one / two, 4)}
    print(f"{name:<24} {1e3 * one:7.1f} ms and {1e3 * two:7.1f} ms a step: throughput {one / two:.2f}×")
    return row | {"turns_ms": {n: [round(1e3 * t, 2) for t in found] for n, found in times.items()}}


def zero(rounds: int) -> dict[str, Any]:
    """AdamW's state and the step with it, whole in each of two processes or shared out."""
    recipe = {"batch_size": 64, "steps": 4, "data": "custom", "kernel": "auto", **NETWORKS["small_convnet"], "optimizer": "adamw"}
    job = {"recipe": recipe, "steps": WARM + 8}
    found: dict[str, list[dict[str, Any]]] = {"whole": [], "zero": []}
    for _ in range(rounds):
        for kind, runs in found.items():
            runs.append(launch(2, job | {"zero": kind == "zero"}))
    row = {}
    for kind, runs in found.items():
        row[f"{kind}_ms"] = round(1e3 * statistics.median(statistics.median(r["seconds"][WARM:]) for r in runs), 2)
        row[f"{kind}_optimizer_bytes"] = max(runs[0]["optimizer_bytes"])
    print(f"ZeRO: {row}")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", metavar="JOB")
    parser.add_argument("--only", default="losses,speed,zero", metavar="A,B", help="parts; those of the stored file that are left out stay")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.worker:
        found = work(json.loads(options.worker))
        if processes.leads():
            print(json.dumps(found))
        return
    found = json.loads(options.store.read_text()) if options.store and options.store.exists() else {}
    parts: dict[str, Callable[[], Any]] = {
        "losses": agreement,
        "speed": lambda: [speed(name, changes, options.rounds) for name, changes in NETWORKS.items()],
        "zero": lambda: zero(options.rounds),
    }
    commands = found.get("commands", {})
    for part in options.only.split(","):
        found[part] = parts[part]()
        commands[part] = command_line()
    if options.store:
        store(options.store, commands=commands, **{part: found[part] for part in parts if part in found})


if __name__ == "__main__":
    main()
