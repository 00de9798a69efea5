"""Where the processes of one machine run, when several of them share its processor."""

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")


def share(cores: Sequence[tuple[int, ...]], part: int, parts: int) -> set[int]:
    """The part-th of `parts` shares of a machine's cores, each given as the numbers of its hardware threads.

    Shares are whole, consecutive cores, as many as each other or one more; empty where there are fewer cores than parts.
    """
    if len(cores) < parts:
        return set()
    return {cpu for core in cores[len(cores) * part // parts : len(cores) * (part + 1) // parts] for cpu in core}


def cores_of_machine() -> list[tuple[int, ...]]:
    """The hardware threads of each core, in the order of sockets; empty where the machine does not tell."""
    found: dict[tuple[int, int], tuple[int, ...]] = {}
    try:
        for cpu in range(os.cpu_count() or 0):
            topology = CPUS / f"cpu{cpu}" / "topology"
            core = int((topology / "physical_package_id").read_text()), int((topology / "core_id").read_text())
            found[core] = (*found.get(core, ()), cpu)
    except (OSError, ValueError):
        return []
    return [found[core] for core in sorted(found)]


@contextlib.contextmanager
def own_cores(part: int, parts: int) -> Iterator[None]:
    """Keeps this process, and what it starts, on its share of the machine's cores while inside.

    So that the scheduler does not put two processes on one core while they wait for each other. Does nothing on systems other
    than Linux, and where somebody has chosen the processors already (this process may not run on all).
    """
    mine: set[int] = set()
    if parts > 1 and hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) == os.cpu_count():
        mine = share(cores_of_machine(), part, parts)
    if not mine:
        yield
        return
    before = os.sched_getaffinity(0)
    _keep_on(mine)
    try:
        yield
    finally:
        _keep_on(before)


def _keep_on(cpus: set[int]) -> None:
    """Of all threads, as torch may have made some."""
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # one that has just ended
            os.sched_setaffinity(int(thread), cpus)


def let_gloo_wait_its_turn() -> None:
    """Makes gloo's thread that reads the sockets one that never pushes another aside (SCHED_BATCH of Linux).

    It asks for the lock of a connection again and again, without sleeping. Where it has pushed aside the very thread that holds
    the lock, which it does on a core that they share, both stand still until its turn is over: one exchange in ten then takes
    3–6 ms instead of 0.5 (`docs/LOG.md`, `gloo`).
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    until, found = time.monotonic() + 0.5, False  # it has no name before it has run for the first time
    while not found and time.monotonic() < until:
        for thread in Path("/proc/self/task").iterdir():
            with contextlib.suppress(OSError):
                if (thread / "comm").read_text().startswith("gloo_tcp_loop"):
                    os.sched_setscheduler(int(thread.name), os.SCHED_BATCH, os.sched_param(0))
                    found = True
        time.sleep(0 if found else 0.01)
