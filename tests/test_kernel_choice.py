"""Which kernel `auto` means, and what is said where there is none."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from spiketrain import kernels
from spiketrain.errors import UserError
from spiketrain.functional import Rule
from spiketrain.kernels import cpp, native
from spiketrain.neurons import LIF

compiler = pytest.mark.skipif(not native.available(Rule(), torch.float32), reason="no C++ compiler on this machine")


@compiler
def test_auto_takes_the_compiled_kernel_for_the_smallest_sequence_too():
    assert kernels.choose("auto", torch.zeros(1), Rule()) == "compiled"


class _Marked(torch.Tensor):
    """A class of somebody else."""


def _seen_by_a_counter(x):
    with FlopCounterMode(display=False):
        return kernels.choose("auto", x, Rule())


def _traced(x):
    chosen = []
    torch.jit.trace(lambda y: chosen.append(kernels.choose("auto", y, Rule())) or y + 1, x, check_trace=False)
    return chosen[0]


@pytest.mark.parametrize("chosen", [
    lambda x: kernels.choose("auto", x.as_subclass(_Marked), Rule()),
    lambda x: kernels.choose("auto", FakeTensorMode().from_tensor(x), Rule()),
    lambda x: kernels.choose("auto", torch.complex(x, x).conj().imag, Rule()),  # in memory it has the other sign
    lambda x: kernels.choose("auto", x.to("meta"), Rule()),
    _seen_by_a_counter,
    _traced,
], ids=["another class", "no numbers", "to be negated", "meta", "counted", "traced"])  # fmt: skip
def test_auto_takes_the_reference_where_torch_must_see_every_operation(chosen):
    assert chosen(torch.zeros(4, 1 << 14)) == "reference"


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_neuron_gives_the_spikes_of_the_neuron(strict):
    x, other = torch.rand(4, 2, 1 << 13), 3 * torch.rand(4, 2, 1 << 13)
    exported = torch.export.export(LIF(), (x,), strict=strict).module()
    assert torch.equal(exported(other), LIF()(other)) and LIF()(other).any()


def test_unknown_kernels_are_named():
    with pytest.raises(UserError, match="did you mean 'compiled'"):
        kernels.choose("compild", torch.zeros(4, 8), Rule())


def test_without_a_compiler_the_reference_runs_and_a_line_says_so(monkeypatch, tmp_path):
    for cached in (cpp.compiler, native.available, native.library):
        cached.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("SPIKETRAIN_CACHE", str(tmp_path))
    try:
        x = torch.randn(4, 1 << 14)
        assert kernels.choose("auto", x, Rule()) == "reference"
        assert "install g++" in kernels.fallback(Rule(), torch.float32)
        with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
            kernels.choose("compiled", x, Rule())
    finally:
        for cached in (cpp.compiler, native.available, native.library):
            cached.cache_clear()
