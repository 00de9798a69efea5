"""Resident memory, of processes of their own: what stays and what goes back, and how much of a layer is alive at once."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spiketrain.functional import Rule
from spiketrain.kernels import native

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    platform.system() != "Linux" or platform.libc_ver()[0] != "glibc", reason="resident memory is read, and glibc told, on Linux"
)

FREED = """
import torch
from common import _resident
from spiketrain.allocator import keep_memory, return_memory
assert keep_memory() and (sys.argv[1] == "kept" or return_memory())
x = torch.ones(16 << 20)
above = [bytearray(600) for _ in range(10000)]  # so that x, were it of the heap, would not be its end
before = _resident("VmRSS")
del x
print((before - _resident("VmRSS")) * 1024 / (64 << 20))
"""

HUGE = """
import torch
from spiketrain.allocator import keep_memory
assert keep_memory()
x = torch.ones(16 << 20)
line = next(line for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages"))
print(int(line.split()[1]) * 1024 / (64 << 20))
"""
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

LAYER = """
import torch
from common import grown_mb
from spiketrain import layers, neurons
from spiketrain.allocator import return_memory
return_memory()
last = torch.channels_last
block = layers.ConvBlock(64, 64, neurons.Spec("lif", threshold=0.5), spiking=True, memory=sys.argv[1]).to(memory_format=last)
spikes = (torch.rand(256, 64, 32, 32) < 0.2).bfloat16().contiguous(memory_format=last).unflatten(0, (4, 64)).requires_grad_()
grad = torch.ones_like(spikes)
def step():
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.autograd.graph.get_gradient_edge(block(spikes))  # which no one holds then, as in a network
    torch.autograd.grad(out, [spikes, *(p for p in block.parameters() if p.requires_grad)], grad)
step()
print(grown_mb(step) * 1e6 / (spikes.numel() * 2))
"""


def figure(script, word):
    """What a script prints, run with that word in a new process which imports as benchmarks do."""
    begin = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'benchmarks')!r}]\n"
    done = subprocess.run([sys.executable, "-c", begin + script, word], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return float(done.stdout)


def test_memory_is_kept_or_given_back():
    assert figure(FREED, "kept") < 0.1
    assert figure(FREED, "returned") > 0.9


@pytest.mark.skipif(not PAGES.exists() or "[never]" in PAGES.read_text(), reason="the system has no huge pages, or allows none")
def test_memory_that_is_kept_is_of_huge_pages():
    assert figure(HUGE, "") > 0.5


@pytest.mark.skipif(not native.available(Rule(), torch.bfloat16), reason="no C++ compiler on this machine")
@pytest.mark.parametrize("memory", ["speed", "bits", "least"])
def test_of_a_layer_no_more_is_alive_than_must_be(memory):
    """In tensors of a layer's size: spikes that come out, currents, and the gradients by currents and by spikes that go in.

    The incoming gradient and spikes are there before. With `least` spikes take the place of currents; currents are made anew, and their
    gradient takes their place, when spikes are gone.
    """
    assert figure(LAYER, memory) < 2.5
