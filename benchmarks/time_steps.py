"""T from 1 to 128: what a training step costs, and how long the first one takes, in a process that has compiled nothing yet.

    python benchmarks/time_steps.py [--network three_convnet] [--batch 16] [--quick] [--out FILE] [--plot docs/img/time_steps.png]

Ours alone, in bf16 where the device is fast at it. First call: the first step of that T less a usual one, T after T in one process
with empty caches: what compiling costs. First ours are held to the reference at T of 1, 5 and 33; where a check fails, no time is
printed and the exit status is 1.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

from common import Gate, device, fast_kernels, fresh_caches, in_turns, options, settle, show, store, summary
from correctness import Held, fresh_weights
from networks import NETWORKS, Network, tiny
from sides import Side, Step, ours
from torch import nn
from torch._dynamo.utils import counters

from spiketrain.assemble import uses_bf16

STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
HELD = (1, 5, 33)


def hold(gate: Gate, network: Network, weights: nn.Module, quick: bool) -> None:
    """Ours by every kernel against the reference, in float64."""
    for steps in HELD[:2] if quick else HELD:
        held = Held(gate, network, steps, weights)
        for kernel in fast_kernels(quick):
            held.exact(f"ours, kernel={kernel}", ours(kernel=kernel))


def measure(network: Network, batch: int, all_steps: tuple[int, ...], rounds: int, weights: nn.Module) -> list[dict[str, Any]]:
    """A row for every T."""
    side = Side("ours", "", ours(), uses_bf16("auto", device()))
    runs: dict[str, Step] = {}
    first: dict[str, float] = {}
    graphs: dict[str, int] = {}
    for steps in all_steps:
        step = runs[str(steps)] = Step(side, network, steps, batch, weights)
        start = time.perf_counter()
        step()
        settle()
        first[str(steps)] = time.perf_counter() - start
        graphs[str(steps)] = counters["stats"]["unique_graphs"]
    rows = []
    for name, times in in_turns(runs, rounds).items():
        found = summary(times)
        extra = {"first_call_s": round(first[name] - found["ms"] / 1e3, 3), "graphs_so_far": graphs[name]}
        rows.append({"steps": int(name), **found, "ms_a_step": round(found["ms"] / int(name), 4), **extra})
    return rows


def plot(rows: list[dict[str, Any]], title: str, file: Path) -> None:
    """Draws both curves over T."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = [r["steps"] for r in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.loglog(steps, [r["ms"] for r in rows], "o-", label="measured")
    left.loglog(steps, [rows[-1]["ms_a_step"] * t for t in steps], ":", color="grey", label="proportional to T")
    left.set(title=title, xlabel="time steps T", ylabel="ms a training step")
    left.legend()
    right.semilogx(steps, [r["first_call_s"] for r in rows], "o-", color="tab:orange")
    right.set(title="first step of that T: compilation", xlabel="time steps T", ylabel="s", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(steps[:1] + [t for t in steps if t & (t - 1) == 0 and t > 1], minor=False)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    print(f"drawn: {file}")


def main() -> None:
    parser = options(__doc__, 3)
    parser.add_argument("--network", default="three_convnet", choices=NETWORKS)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--most", type=int, default=128, help="largest T")
    parser.add_argument("--plot", type=Path, help="picture to draw")
    given = parser.parse_args()
    network = tiny(NETWORKS[given.network]) if given.quick else NETWORKS[given.network]
    all_steps = tuple(t for t in (STEPS[:4] if given.quick else STEPS) if t <= given.most)
    weights, gate = fresh_weights(network, 1, device()), Gate()
    with tempfile.TemporaryDirectory() as folder:
        before = dict(os.environ)
        os.environ.update(fresh_caches(folder))
        try:
            rows = measure(network, 2 if given.quick else given.batch, all_steps, given.rounds, weights)
        finally:
            os.environ.clear()
            os.environ.update(before)
    hold(gate, network, weights, given.quick)  # after, so that it compiles nothing for the first calls
    checks = gate.close()
    title = f"{network.name}, batch {2 if given.quick else given.batch}, {device()}"
    show(title, ["T", "ms", "quartiles", "ms / T", "first call s", "graphs so far"],
         [[r["steps"], r["ms"], "{:.5g} … {:.5g}".format(*r["quartiles_ms"]), r["ms_a_step"], r["first_call_s"], r["graphs_so_far"]]
          for r in rows])  # fmt: skip
    if given.out:
        store(given.out, benchmark="time_steps", network=network.name, batch=given.batch, checks=checks, rows=rows)
    if given.plot:
        plot(rows, title, given.plot)


if __name__ == "__main__":
    main()
