"""Memory of a training step: the peak in a process of its own, and the bytes that are saved for the backward pass.

    python benchmarks/memory.py [--network cifar_convnet] [--batch 64] [--quick] [--out FILE]

- step MB: what a step (its second) takes at most beyond what was there before it: activations, gradients, work space;
- whole MB: the same with weights and the optimiser's state;
- saved MB: different memory that the graph keeps between forward and backward, weights not counted.

- ms: the median of three steps, which this program takes after another, one side a process (`step.py` has all in turn).

Ours with every value of the recipe's field `memory`, where it has one. Freed memory is kept where `spiketrain train` keeps it, which is
with `speed`; else, and for all others, it goes back to the system at once, so that their peaks are the least. First ours are held to the
reference and to SpikingJelly; where a check fails, nothing is printed and the exit status is 1. Resident memory (Linux), or the GPU's.
"""

import json
import os
import subprocess
import sys
from typing import Any

import peers
import torch
from common import ROOT, Gate, device, fast_kernels, grown_mb, in_turns, options, show, store, summary
from correctness import fresh_weights, hold
from networks import NETWORKS, Network, tiny
from sides import NCHW, Side, Step, ann, looped, ours, spikingjelly, spikingjelly_saving

from spiketrain.allocator import return_memory
from spiketrain.recipes import FIELDS

SETTINGS: list[str] = list(FIELDS["memory"].metadata["choices"])
"""Values of the recipe's field that trades recomputation for memory."""


def contestants() -> list[Side]:
    """Ours by every setting, SpikingJelly by its own, the ANN."""
    everyone = [
        *(Side(f"ours, memory={s}", "", ours(memory=s), True) for s in SETTINGS),
        Side("ours", "", ours(), False),
        Side("ours, reference kernel", "", ours(kernel="reference"), True),
        Side("SpikingJelly, default", "spikingjelly", spikingjelly(NCHW), False, NCHW),
        Side("SpikingJelly, neurons compiled", "spikingjelly", spikingjelly(torch.channels_last, True), True),
        Side("SpikingJelly, optimize_memory level 1", "spikingjelly", spikingjelly_saving, True),
        Side("looped over time", "", looped, False, NCHW),
        Side("ANN, batch B", "", ann, False),
        Side("ANN, batch B", "", ann, True),
    ]
    return [side for side in everyone if not side.library or side.library in peers.found()]


def saved_bytes(step: Step) -> int:
    """Bytes of different memory that the graph of the loss keeps, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in step.module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # held here, so that no address is used twice

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        step.loss()
    return sum(storage.nbytes() for storage in kept.values())


def measure(side: Side, network: Network, batch: int) -> dict[str, float]:
    """Of one side, in this process."""
    if not side.name.startswith("ours") or "bits" in side.name or "least" in side.name:
        return_memory()
    step = Step(side, network, network.steps, batch, fresh_weights(network, network.steps, device()))
    step()  # compiles, and makes the optimiser's state
    state = [t for s in step.optimizer.state.values() for t in s.values()]
    held = sum(t.numel() * t.element_size() for t in (*step.module.parameters(), *step.module.buffers(), *state)) / 1e6
    taken = grown_mb(step)
    saved = round(saved_bytes(step) / 1e6, 1)
    return {"step_mb": taken, "whole_mb": round(held + taken, 1), "saved_mb": saved, "ms": summary(in_turns({"": step}, 3)[""])["ms"]}


def in_own_process(label: str, network: str, batch: int, quick: bool) -> dict[str, float]:
    """`measure` of the side with that label, in a new process."""
    words = [sys.executable, __file__, "--network", network, "--batch", str(batch), "--one", label, *(["--quick"] if quick else [])]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(words, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{label}: failed\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = options(__doc__, 1)
    parser.add_argument("--network", default="cifar_convnet", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=0, help="0: the network's own")
    parser.add_argument("--sides", default="", help="only those whose label holds one of these words, separated by commas")
    parser.add_argument("--one", default="", help="measure the side of this label in this process, as JSON")
    given = parser.parse_args()
    network = tiny(NETWORKS[given.network]) if given.quick else NETWORKS[given.network]
    batch = given.batch or network.batch
    if given.one:
        print(json.dumps(measure(next(s for s in contestants() if s.label == given.one), network, batch)))
        return
    peers.say_missing()
    gate = Gate()
    settings: list[dict[str, Any]] = [{"memory": s} for s in SETTINGS] + [{"kernel": k} for k in fast_kernels(given.quick)]
    hold(gate, network, network.steps, fresh_weights(network, network.steps, device()), ["bf16"], settings)
    checks = gate.close()
    words = given.sides.split(",")
    chosen = [side.label for side in contestants() if any(w in side.label for w in words)]
    rows = [{"side": label} | in_own_process(label, given.network, batch, given.quick) for label in chosen]
    show(f"memory of a training step of {network.name}, T={network.steps}, batch {batch}, {device()}",
         ["", "step MB", "whole MB", "saved MB", "saved MB an image", "ms"],
         [[r["side"], r["step_mb"], r["whole_mb"], r["saved_mb"], r["saved_mb"] / batch, r["ms"]] for r in rows])  # fmt: skip
    if given.out:
        store(given.out, benchmark="memory", network=network.name, sample=network.sample, steps=network.steps, batch=batch,
              peers=peers.found(), checks=checks, rows=rows)  # fmt: skip


if __name__ == "__main__":
    main()
