"""The ImageNet path from end to end on a generated tree: 20 classes of JPEGs, 224 pixels, resnet18_imagenet, two epochs; and the
loader's share of the time.

    python benchmarks/imagenet.py [--train 10] [--val 3] [--steps 2] [--json results/benchmarks/imagenet.json]

`train` runs the recipe `imnet-resnet18` and leaves a record. Then, in turns: batches of the loader alone (workers and all), steps alone
on a batch that is held, and both together, with the time that the training waits for the next batch. The share is printed two ways:
waiting by the whole time; and the processor time of decoding by all of the processor time, which matters where, as on a CPU, the workers
take it from the training.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import store, summary
from jpegs import write_tree

from spiketrain import recipes
from spiketrain.assemble import build_network, load_data, make_loader, make_optimizer, uses_bf16
from spiketrain.data.jpeg import decode
from spiketrain.data.parallel import cores
from spiketrain.objective import Objective
from spiketrain.progress import Meter
from spiketrain.train import train, train_step

CLASSES, BATCH = 20, 20


def measure(recipe: recipes.Recipe, root: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds a batch: of the loader, of the step, of both together and, of these, waiting."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = load_data(recipe, root)
    loader = make_loader(recipe, data, device)
    network = build_network(recipe, data, device).train()
    optimizer, _ = make_optimizer(recipe, network, loader.batches)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=uses_bf16(recipe.precision, device))
    held = next(iter(loader.train(0)))

    def step(batch: Any) -> float:
        begun = time.perf_counter()
        train_step(recipe, network, optimizer, autocast, Objective(), *batch, Meter())
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    step(held)
    found: dict[str, list[float]] = {"loader": [], "step": [], "both": [], "waiting": []}
    for _ in range(rounds):
        begun = time.perf_counter()
        count = sum(1 for _ in loader.train(0))  # a whole epoch: nothing is left over that was decoded before
        found["loader"].append((time.perf_counter() - begun) / count)
        found["step"] += [step(held) for _ in range(3)]
        begun, waiting, count = time.perf_counter(), 0.0, 0
        batches = loader.train(1)
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            waiting += time.perf_counter() - asked if count else 0.0  # the first batch is waited for once an epoch, however long it is
            step(batch)
            count += 1
        found["both"].append((time.perf_counter() - begun) / count)
        found["waiting"].append(waiting / max(count - 1, 1))
    return found


def decoding(recipe: recipes.Recipe, root: Path) -> float:
    """Processor seconds of one image's way to its view, in one thread."""
    split = load_data(recipe, root).train
    stream: Any = split.stream
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    count = min(100, len(split))
    begun = time.process_time()
    for i in range(count):
        stream.view.train(decode(stream.files.read(i), ""), (0, 0, i))
    torch.set_num_threads(threads)
    return (time.process_time() - begun) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=10, help="training images a class")
    parser.add_argument("--val", type=int, default=3, help="validation images a class")
    parser.add_argument("--steps", type=int, default=2, help="time steps T")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks/imagenet.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        written = write_tree(root / "imnet", {"train": options.train, "val": options.val}, CLASSES, [])
        recipe = recipes.get("imnet-resnet18").but(
            steps=options.steps, epochs=2, batch_size=BATCH, eval_batch_size=BATCH, lr=5e-4, warmup_epochs=0.0, workers=cores()
        )
        record = train(recipe, data_root=root, output=root / "runs", quiet=True)
        print(f"two epochs: {record.train_seconds:.1f} s, loss {record.curve[0]['train_loss']:.3f} → {record.curve[-1]['train_loss']:.3f}")
        times = measure(recipe, root, options.rounds)
        each = decoding(recipe, root)
    rows = {name: summary(t) for name, t in times.items()}
    whole, waiting = rows["both"]["ms"], rows["waiting"]["ms"]
    work = each * BATCH / (whole / 1e3 * cores())
    for name, row in rows.items():
        print(f"{name:8s} {row['ms']:9.1f} ms a batch of {BATCH}")
    print(f"the loader's share of the time: {100 * waiting / whole:.1f} % waiting, {100 * work:.1f} % of the processor's work")
    store(
        options.json, classes=CLASSES, images=[options.train * CLASSES, options.val * CLASSES], bytes=written, batch=BATCH,
        steps=options.steps, workers=cores(), precision=record.precision, parameters=record.parameters, macs_per_step=record.macs_per_step,
        train_seconds=record.train_seconds, compile_seconds=record.compile_seconds, curve=record.curve, milliseconds=rows,
        decode_cpu_ms=round(1e3 * each, 4), share_waiting=round(waiting / whole, 4), share_of_work=round(work, 4),
    )  # fmt: skip


if __name__ == "__main__":
    main()
