"""Where the processes of one machine run."""

import os
import subprocess
import sys

import pytest

from spiketrain import placement
from spiketrain.placement import own_cores, share

CORES = [(0, 8), (1, 9), (2, 10), (3, 11), (4, 12), (5, 13), (6, 14), (7, 15)]


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8])
def test_shares_are_whole_cores_and_make_the_machine(parts):
    shares = [share(CORES, part, parts) for part in range(parts)]
    assert set().union(*shares) == set(range(16)) and sum(map(len, shares)) == 16
    assert all({cpu ^ 8 for cpu in mine} == mine for mine in shares)  # both hardware threads of a core, or none
    assert max(map(len, shares)) - min(map(len, shares)) <= 2


def test_more_processes_than_cores_share_them_as_the_system_likes():
    assert share(CORES, 3, 9) == set()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or (os.cpu_count() or 1) < 2, reason="needs Linux and two processors")
def test_a_process_is_kept_on_its_cores_and_then_let_go(monkeypatch):
    everywhere = set(range(os.cpu_count()))
    if os.sched_getaffinity(0) != everywhere:
        pytest.skip("this process may not run everywhere")
    monkeypatch.setattr(placement, "cores_of_machine", lambda: [(cpu,) for cpu in sorted(everywhere)])
    ask = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    with own_cores(1, len(everywhere)):
        assert os.sched_getaffinity(0) == {1}
        assert subprocess.check_output(ask, text=True).strip() == "[1]"
        with own_cores(0, len(everywhere)):  # somebody has chosen already
            assert os.sched_getaffinity(0) == {1}
    assert os.sched_getaffinity(0) == everywhere


@pytest.mark.skipif(not os.path.isdir("/sys/devices/system/cpu/cpu0/topology"), reason="needs Linux that tells its cores")
def test_the_cores_of_this_machine_have_every_hardware_thread_once():
    threads = [cpu for core in placement.cores_of_machine() for cpu in core]
    assert sorted(threads) == list(range(os.cpu_count()))


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="needs Linux")
def test_gloos_reader_waits_its_turn():
    code = """
import os, pathlib, torch, torch.distributed as dist
from spiketrain.placement import let_gloo_wait_its_turn
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
let_gloo_wait_its_turn()
kinds = {(t / "comm").read_text()[:8]: os.sched_getscheduler(int(t.name)) for t in pathlib.Path("/proc/self/task").iterdir()}
assert kinds.pop("gloo_tcp") == os.SCHED_BATCH, kinds
assert os.sched_getscheduler(0) == os.SCHED_OTHER
"""
    subprocess.run([sys.executable, "-c", code], check=True)
