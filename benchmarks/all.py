"""Every benchmark of speed and memory, one after the other, each with its record.

    python benchmarks/all.py [--quick] [--into results/benchmarks]

On a GPU where there is one. Exit status 1 if one failed; the others run all the same.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from common import ROOT, device

NETWORKS = ("three_convnet", "resnet18", "cifar_convnet", "dvs_convnet")


def commands(into: Path, quick: bool) -> list[list[str]]:
    """The words of each, without the interpreter."""
    where = device().type
    plot = into / "time_steps.png" if quick else ROOT / "docs" / "img" / ("time_steps.png" if where == "cpu" else f"time_steps-{where}.png")
    found = [["kernel.py", "--out", f"{into}/kernel-{where}.json"]]
    for network in NETWORKS:
        found.append(["convolutions.py", "--network", network, "--out", f"{into}/convolutions-{network}-{where}.json"])
        found.append(["step.py", "--network", network, "--first-step", "--out", f"{into}/step-{network}-{where}.json"])
    found.append(["inference.py", "--out", f"{into}/inference-{where}.json"])
    found.append(["optimizer.py", "--out", f"{into}/optimizer-{where}.json"])
    found.append(["memory.py", "--out", f"{into}/memory-{where}.json"])
    found.append(["time_steps.py", "--plot", str(plot), "--out", f"{into}/time_steps-{where}.json"])
    return [[*words, *(["--quick"] if quick else [])] for words in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: whether it runs, not how fast")
    parser.add_argument("--into", type=Path, default=ROOT / "results" / "benchmarks", help="folder of the records")
    given = parser.parse_args()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    failed = []
    for words in commands(given.into.resolve(), given.quick):
        print(f"\n$ python benchmarks/{' '.join(words)}", flush=True)
        whole = [sys.executable, f"benchmarks/{words[0]}", *words[1:]]
        done = subprocess.run(whole, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, check=False)
        if done.returncode:
            failed.append(words[0])
    print(f"\n{len(failed)} of {len(commands(given.into, given.quick))} failed{': ' if failed else ''}{', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
