"""Blocks that keep less for their backward pass: the same gradients where that is not plain, and errors where they cannot be had."""

import pytest
import torch
from torch.func import functional_call

from spiketrain import layers
from spiketrain.functional import Rule
from spiketrain.kernels import native
from spiketrain.neurons import Spec

compiler = pytest.mark.skipif(not native.available(Rule(), torch.bfloat16), reason="no C++ compiler on this machine")
SETTINGS = ["speed", "bits", "least"]


def spikes(dtype, channels=16):
    x = (torch.rand(32, channels, 16, 16) < 0.2).to(dtype).contiguous(memory_format=torch.channels_last)
    return x.unflatten(0, (4, 8)).requires_grad_()


def block(memory, channels=16, pool=1):
    torch.manual_seed(0)
    made = layers.ConvBlock(channels, 16, Spec("lif", threshold=0.3), pool=pool, spiking=True, memory=memory)
    return made.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("memory", SETTINGS[1:])
def test_float32_spikes_under_autocast(memory, pool):
    """A convolution computes in bfloat16 then, the first time and when it is made again."""
    x, outcomes = spikes(torch.float32), []
    for setting in ("speed", memory):
        layer = block(setting, pool=pool)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        by = torch.autograd.grad(out.float().square().sum() + out.float().sum(), [x, *layer.conv.parameters(), *layer.norm.parameters()])
        outcomes.append([out.detach(), *by])
    assert all(a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    assert 0.01 < float(outcomes[0][0].float().mean()) < 0.9


@pytest.mark.parametrize("memory", SETTINGS[1:])
def test_weights_that_are_only_there_for_the_forward_pass(memory):
    x, outcomes = spikes(torch.float32), []
    for setting in ("speed", memory):
        layer = block(setting)
        other = {name: (2 * p.detach()).requires_grad_() for name, p in layer.named_parameters() if p.requires_grad}
        out = functional_call(layer, other, (x,))
        outcomes.append(torch.autograd.grad(out.sum(), list(other.values())))
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*outcomes, strict=True))


@compiler
def test_whoever_kept_currents_that_were_written_over_is_told():
    layer, kept = block("least"), []
    layer.conv.register_forward_hook(lambda module, given, currents: kept.append(currents.square().sum()))
    layer_bits = block("bits")
    layer_bits.conv.register_forward_hook(lambda module, given, currents: kept.append(currents.square().sum()))
    x = torch.randn(4, 8, 16, 16, 16)  # no spikes: the layer is called as it is, hooks and all
    layer.spiking = layer_bits.spiking = False
    layer(x), layer_bits(x)
    kept[1].backward()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept[0].backward()
