"""Seconds until a new process trains: `first_step.py NETWORK BATCH STEPS PRECISION` prints them as JSON. `step.py` starts it."""

import json
import sys
import time

START = time.perf_counter()

from common import device, settle  # noqa: E402
from networks import NETWORKS  # noqa: E402
from sides import Side, Step, ours  # noqa: E402


def main() -> None:
    name, batch, steps, precision = sys.argv[1:]
    marks = [START, time.perf_counter()]
    network, build = NETWORKS[name], ours()
    step = Step(Side("ours", "", build, precision == "bf16"), network, int(steps), int(batch), build(network, int(steps)).to(device()))
    marks.append(time.perf_counter())
    for _ in range(2):
        step()
        settle()
        marks.append(time.perf_counter())
    names = ("import", "build", "first", "second")
    print(json.dumps({n: round(b - a, 3) for n, a, b in zip(names, marks, marks[1:], strict=False)}))


if __name__ == "__main__":
    main()
