"""Resident memory, of processes of their own: what stays and what goes back, and how much of a layer is alive at once."""

import ctypes
import platform
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spiketrain import allocator
from spiketrain.allocator import Arena
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


def addresses(arena, *blocks):
    return [ctypes.addressof(block) - arena.first for block in blocks]


def test_the_arena_takes_again_what_has_been_freed_where_it_fits_best():
    page = Arena.PAGE
    arena = Arena(64 * page)
    a, b, c, d = arena.take(10 * page), arena.take(1), arena.take(4 * page - 7), arena.take(8 * page)
    assert addresses(arena, a, b, c, d) == [0, 10 * page, 11 * page, 15 * page]
    a = c = None
    e = arena.take(3 * page)  # where c was, as less is left over there
    assert addresses(arena, e) == [11 * page]
    b = e = None  # with a and c one piece of 15
    f = arena.take(15 * page)
    assert addresses(arena, f) == [0] and arena.take(64 * page) is None
    d = f = None
    arena.trim()
    assert arena.free == {0: 64 * page}


def test_what_is_taken_stays_its_own_until_the_last_tensor_of_it_is_gone():
    """Tensors of random sizes, each full of its number, come and go in any order."""
    arena, draw, alive = Arena(1 << 24), random.Random(1), {}
    for number in range(2000):
        if alive and draw.random() < 0.5:
            key = draw.choice(list(alive))
            assert (alive.pop(key) == key % 251).all()
        block = arena.take(draw.choice([1, 5000, 70000, 1 << 20]))
        if block is not None:
            alive[number] = torch.frombuffer(block, dtype=torch.uint8).fill_(number % 251).view(-1, 1)[1:].T
    assert len(alive) > 10 and all((x == key % 251).all() for key, x in alive.items())
    alive.clear()
    arena.trim()
    assert len(arena.free) == 1


def test_only_programs_that_keep_memory_have_an_arena(monkeypatch):
    shape = (2, 64, 100, 100)
    plain = allocator.empty(shape, torch.float32, torch.channels_last)
    arena = Arena(1 << 25)
    monkeypatch.setattr(allocator, "_arenas", [arena])
    kept = allocator.empty(shape, torch.float32, torch.channels_last)
    assert 0 <= kept.data_ptr() - arena.first < 1 << 25 and not 0 <= plain.data_ptr() - arena.first < 1 << 25
    assert (kept.shape, kept.stride(), kept.dtype) == (plain.shape, plain.stride(), plain.dtype)
    assert allocator.empty((10,), torch.uint8).data_ptr() - arena.first not in range(1 << 25)  # too small
    assert allocator.empty((1 << 26,), torch.uint8).numel() == 1 << 26  # too large: the system's
    arena.trim()
    assert kept.fill_(1).sum() == kept.numel()
