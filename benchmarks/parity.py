"""Do we compute what SpikingJelly computes? Equal spikes and gradients where its conventions and ours are the same.

    python benchmarks/parity.py --peers PYTHON --out results/benchmarks/parity.json

PYTHON is the interpreter of an environment with spikingjelly==2.0.0. The same float32 inputs go to both; numbers travel as
`.npz` files. Exit status 1 where a spike differs or a gradient by 1e-5 or more.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CASES = [
    {"neuron": n, "steps": t, "reset": r, "detach": d}
    for n, t, r, d in itertools.product(("if", "lif", "plif"), (1, 4, 10), ("hard", "soft"), (True, False))
]
MOST = 1e-5
PEER = """
import sys, numpy as np, torch
from spikingjelly.activation_based import neuron, surrogate
import json, importlib.metadata
cases, data = json.load(open(sys.argv[1])), np.load(sys.argv[2])
out = {}
for i, c in enumerate(cases):
    common = dict(v_threshold=1.0, v_reset=0.0 if c["reset"] == "hard" else None, detach_reset=c["detach"],
                  surrogate_function=surrogate.ATan(alpha=2.0), step_mode="m")
    node = {"if": lambda: neuron.IFNode(**common), "lif": lambda: neuron.LIFNode(tau=2.0, **common),
            "plif": lambda: neuron.ParametricLIFNode(init_tau=2.0, **common)}[c["neuron"]]()
    x = torch.from_numpy(data[f"x{c['steps']}"]).requires_grad_()
    s = node(x)
    (s * torch.from_numpy(data[f"w{c['steps']}"])).sum().backward()
    out[f"s{i}"], out[f"g{i}"] = s.detach().numpy(), x.grad.numpy()
    out[f"p{i}"] = node.w.grad.numpy() if c["neuron"] == "plif" else np.zeros(())
np.savez(sys.argv[3], **out)
print(importlib.metadata.version("spikingjelly"), torch.__version__)
"""


def ours(case: dict[str, object], x: np.ndarray, weight: np.ndarray, kernel: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Spikes, gradient by x, and gradient by the learned time constant of our neuron."""
    import torch

    import spiketrain as st

    made = st.neurons.Spec(str(case["neuron"]), 2.0, 1.0, "atan", 2.0, str(case["reset"]), bool(case["detach"]), kernel=kernel).make()
    leaf = torch.from_numpy(x).requires_grad_()
    spikes = made(leaf)
    (spikes * torch.from_numpy(weight)).sum().backward()
    w = getattr(made, "w", None)
    return spikes.detach().numpy(), leaf.grad.numpy(), 0.0 if w is None else float(w.grad)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", required=True, help="python with spikingjelly==2.0.0")
    parser.add_argument("--out", help="JSON to write")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    data = {}
    for steps in (1, 4, 10):
        data[f"x{steps}"] = rng.normal(0.6, 1.0, (steps, 8, 16, 7, 7)).astype(np.float32)
        data[f"w{steps}"] = rng.normal(size=(steps, 8, 16, 7, 7)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "cases.json").write_text(json.dumps(CASES))
        (place / "peer.py").write_text(PEER)
        np.savez(place / "in.npz", **data)
        words = [options.peers, str(place / "peer.py"), str(place / "cases.json"), str(place / "in.npz"), str(place / "out.npz")]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            return 2
        versions = done.stdout.split()
        theirs = dict(np.load(place / "out.npz"))
    rows = []
    for i, case in enumerate(CASES):
        for kernel in ("reference", "compiled"):
            s, g, w = ours(case, data[f"x{case['steps']}"], data[f"w{case['steps']}"], kernel)
            spikes, gradient = float(np.abs(s - theirs[f"s{i}"]).max()), float(np.abs(g - theirs[f"g{i}"]).max())
            by_w = abs(w - float(theirs[f"p{i}"])) / max(1.0, abs(w))
            rows.append({**case, "kernel": kernel, "spikes": spikes, "by_x": gradient, "by_w_relative": by_w, "rate": float(s.mean())})
    worst = {k: max(row[k] for row in rows) for k in ("spikes", "by_x", "by_w_relative")}
    good = worst["spikes"] == 0 and worst["by_x"] < MOST and worst["by_w_relative"] < MOST
    from spiketrain.record import commit
    from spiketrain.record import versions as our_versions

    record = {"spikingjelly": versions[0], "its torch": versions[1], "versions": our_versions(), "commit": commit()}
    record |= {"worst": worst, "rows": rows}
    print(f"{len(rows)} cases against SpikingJelly {versions[0]}: largest difference of spikes {worst['spikes']:g}, of gradients by x "
          f"{worst['by_x']:.2e}, by w {worst['by_w_relative']:.2e} (relative): {'equal' if good else 'DIFFERENT'}")
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(json.dumps(record, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
