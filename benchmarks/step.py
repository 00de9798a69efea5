"""A whole training step: forward, loss, backward, fused AdamW. Us, the peers, the network as an ANN, and its convolutions alone.

    python benchmarks/step.py --network cifar_convnet [--batch 64] [--rounds 3] [--quick] [--out FILE]

Everyone has the same network and the same weights (asserted) and is timed in turn. First ours are held to the reference kernel and
to SpikingJelly in loss and gradients; where a check fails, no time is printed and the exit status is 1. A side that is more than
ten times slower than ours has one turn.

- SpikingJelly, default: fp32, NCHW, its multi-step layers; then bf16 autocast, channels-last, with its neurons under torch.compile
  (--whole: the whole network too).
- snnTorch: its network looped over time. Looped over time: the older benchmark's way, an operation at a time.
- ANN: the network with ReLU and no time, at batch B and at batch T·B.
- convolutions alone: forward, gradient by weight and gradient by input of every convolution, over tensors that are at hand; the
  first convolution of an image once, without a gradient by its input. No step of torch's convolutions can be faster; ours has others.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from typing import Any

import peers
import torch
from common import ROOT, Gate, device, fast_kernels, fresh_caches, in_turns, options, show, store, summary
from convolutions import everything
from correctness import fresh_weights, hold
from networks import NETWORKS, Network, convolutions, tiny
from sides import Side, Step, sides

from spiketrain.allocator import trim


def measure(network: Network, steps: int, batch: int, chosen: list[Side], rounds: int, weights: torch.nn.Module) -> list[dict[str, Any]]:
    """A row for everyone: times, images a second, ratios."""
    runs: dict[str, Any] = {side.label: Step(side, network, steps, batch, weights) for side in chosen}
    images = {name: step.images for name, step in runs.items()}
    layers = convolutions(network, batch, steps)
    precisions = sorted({"bf16" if side.bf16 else "fp32" for side in chosen})
    for precision in precisions:
        for layout in ("NHWC", "NCHW") if precision == "fp32" else ("NHWC",):
            runs[f"convolutions alone, {precision} {layout}"] = everything(layers, precision, layout)
    for run in runs.values():
        run()  # compiles
    best = "ours, bf16 NHWC" if "ours, bf16 NHWC" in runs else "ours, fp32 NHWC"
    found = {name: summary(t) for name, t in in_turns(runs, rounds, 1, best, 10.0).items()}
    bound = {p: min(f["ms"] for name, f in found.items() if name.startswith(f"convolutions alone, {p}")) for p in precisions}
    rows = []
    for name, f in found.items():
        n = images.get(name, batch)
        row = {"side": name, **f, "images_per_s": round(1e3 * n / f["ms"], 3)}
        row["times_ours"] = round(f["ms"] / found[best]["ms"], 3)
        row["times_bound"] = round(f["ms"] / bound["bf16" if "bf16" in name else "fp32"], 3)
        rows.append(row)
    return rows


def headline(rows: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """How many times our quickest step is quicker than each peer's quickest; and what part of T steps of the ANN, and of the bound."""

    def quickest(word: str) -> float:
        return min((r["ms"] for r in rows if r["side"].startswith(word)), default=float("nan"))

    mine = min(r["ms"] for r in rows if r["side"] in ("ours, bf16 NHWC", "ours, fp32 NHWC", "ours, CUDA graphs, bf16 NHWC"))
    words = {"SpikingJelly, default": "SpikingJelly, default", "SpikingJelly at its best": "SpikingJelly"}
    words |= {name: name for name in ("snnTorch", "looped over time")}
    found = {f"faster than {name}": quickest(word) / mine for name, word in words.items()}
    found["of T times the ANN"] = mine / (steps * quickest("ANN, batch B"))
    found["of the convolutions alone"] = mine / quickest("convolutions alone")
    return {name: round(value, 3) for name, value in found.items() if not math.isnan(value)}


def first_step(network: str, batch: int, steps: int, precision: str) -> dict[str, dict[str, float]]:
    """Seconds of import, building and first steps in a new process: with empty caches of compiled code, then with those it left."""
    with tempfile.TemporaryDirectory() as folder:
        caches = fresh_caches(folder)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        words = [sys.executable, str(ROOT / "benchmarks" / "first_step.py"), network, str(batch), str(steps), precision]
        found = {}
        for cache in ("cold", "warm"):
            done = subprocess.run(words, env=os.environ | caches | {"PYTHONPATH": path}, capture_output=True, text=True, check=True)
            found[cache] = json.loads(done.stdout.splitlines()[-1])
        return found


def chosen_sides(given: argparse.Namespace, steps: int) -> list[Side]:
    """Those whose precision is asked for and whose label holds one of the words that were given."""
    words = given.sides.split(",") if given.sides else [""]
    precisions = given.precisions.split(",")
    found = [s for s in sides(steps, given.whole) if ("bf16" if s.bf16 else "fp32") in precisions]
    return [s for s in found if s.name == "ours" or any(word in s.label for word in words)]


def main() -> None:
    parser = options(__doc__, 3)
    parser.add_argument("--network", default="cifar_convnet", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=0, help="0: the network's own")
    parser.add_argument("--steps", type=int, default=0, help="T; 0: the network's own")
    parser.add_argument("--precisions", default="bf16,fp32")
    parser.add_argument("--sides", default="", help="only those whose label holds one of these words, and ours")
    parser.add_argument("--whole", action="store_true", help="SpikingJelly's network compiled as a whole too (minutes)")
    parser.add_argument("--first-step", action="store_true", help="ours in a new process too: without and with code compiled before")
    given = parser.parse_args()
    network = NETWORKS[given.network]
    if given.quick:
        network = tiny(network)
    steps, batch = given.steps or network.steps, given.batch or network.batch
    peers.say_missing()
    weights, gate = fresh_weights(network, steps, device()), Gate()
    hold(gate, network, steps, weights, given.precisions.split(","), [{"kernel": k} for k in fast_kernels(given.quick)])
    checks = gate.close()
    rows = measure(network, steps, batch, chosen_sides(given, steps), given.rounds, weights)
    title = f"training step of {network.name}, T={steps}, batch {batch}, {device()}"
    show(title, ["", "ms", "quartiles", "n", "images/s", "× ours", "× bound"],
         [[r["side"], r["ms"], "{:.5g} … {:.5g}".format(*r["quartiles_ms"]), r["n"], r["images_per_s"], r["times_ours"], r["times_bound"]]
          for r in rows])  # fmt: skip
    ratios = headline(rows, steps)
    print("ours: " + ", ".join(f"{value:.3g}× {name}" for name, value in ratios.items()), flush=True)
    first = {}
    if given.first_step:
        trim()  # all sides have been here
        first = {p: first_step(network.name, batch, steps, p) for p in given.precisions.split(",")}
        show("ours, first step in a new process (s)", ["", "import", "build", "first step", "second step"],
             [[f"{p}, {cache} cache", *f.values()] for p, both in first.items() for cache, f in both.items()])  # fmt: skip
    if given.out:
        store(given.out, benchmark="step", network=network.name, sample=network.sample, steps=steps, batch=batch, peers=peers.found(),
              checks=checks, rows=rows, ratios=ratios, first_step_s=first)  # fmt: skip


if __name__ == "__main__":
    main()
