"""Membrane-shortcut networks and VGGSNN: their size, their equations, what enters a convolution, and what is kept for the backward pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from spiketrain import neurons
from spiketrain.errors import UserError
from spiketrain.layers import AvgPool, BatchNorm, Conv3x3
from spiketrain.models import build, count_macs, count_parameters
from spiketrain.models.membrane import Block, ConvNorm
from spiketrain.models.network import Plan

FACTS = [
    # model, channels, classes, side, parameters, million MACs a step
    # 11,173,962: torchvision's ResNet-18 with a 3×3 stem and 10 classes, and a threshold and an alpha for each of 17 neurons
    ("ms_resnet18", 3, 10, 32, 11_173_962 + 2 * 17, 555.42),
    ("max_resnet18", 3, 10, 32, 11_173_962 + 2 * 17, 725.29),
    ("max_resnet18_wide", 3, 10, 32, 12_569_226 + 2 * 17, 2738.23),
    ("vgg_snn", 2, 10, 48, 9_217_152 + 2 * 2_752 + (4608 * 10 + 10) + 2 * 8, 1361.65),  # convolutions, norms, readout, neurons
]
MEMBRANE = ["ms_resnet18", "max_resnet18", "max_resnet18_wide"]


@pytest.mark.parametrize(("name", "channels", "classes", "side", "parameters", "macs"), FACTS)
def test_parameters_and_operations(name, channels, classes, side, parameters, macs):
    network = build(name, in_channels=channels, num_classes=classes)
    assert count_parameters(network) == parameters
    assert count_macs(network, (channels, side, side)) / 1e6 == pytest.approx(macs, abs=0.006)


def entering(network, inputs):
    """What entered each convolution, in a forward pass."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, given, out, name=name: found.update({name: given[0].detach()}))
    network(inputs)
    return found


def scattered(network):
    """The network with norms that are not as they begin: a weight of zero would hide what stands before it."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            nn.init.uniform_(module.bn.weight, 0.5, 1.5)
            nn.init.uniform_(module.bn.bias, -0.2, 0.2)
    return network


def settled(network, inputs):
    """In evaluation mode, with running statistics that are those of the inputs: with the initial ones a network is silent."""
    for module in network.modules():
        if isinstance(module, BatchNorm):
            module.bn.momentum = 1.0
    with torch.no_grad():
        network(inputs)
    return network.eval()


@pytest.mark.parametrize("kernel", ["reference", "auto"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", MEMBRANE)
def test_spikes_alone_enter_convolutions_behind_the_stem(name, training, kernel):
    network, images = scattered(build(name, width=0.25, steps=3, threshold=0.5, kernel=kernel)), torch.randn(8, 3, 32, 32)
    network = network if training else settled(network, images)
    with torch.set_grad_enabled(training):
        stem, *others = entering(network, images).values()
    assert stem.shape == (8, 3, 32, 32)  # once for all steps
    assert len(others) == (19 if name != "max_resnet18_wide" else 18)  # 16 in branches and a shortcut where shapes differ
    for x in others:
        assert len(x) == 3 * 8 and bool(((x == 0) | (x == 1)).all()) and 0 < float(x.mean()) < 1


def test_means_of_four_spikes_enter_a_stage_of_vgg_snn():
    found = list(entering(scattered(build("vgg_snn", in_channels=2, width=0.25, steps=3)), torch.rand(3, 4, 2, 48, 48)).values())
    assert [x.shape[-1] for x in found] == [48, 48, 24, 24, 12, 12, 6, 6]
    for i, x in enumerate(found[1:], 1):
        levels = 1 if i % 2 else 4
        assert torch.equal(x * levels, (x * levels).round()) and float(x.max()) <= 1


def test_vgg_snn_reads_the_last_mean_of_four_spikes_pixel_by_pixel():
    frames = torch.randn(2, 4, 2, 48, 48)
    network = settled(build("vgg_snn", in_channels=2, width=0.125, steps=2, threshold=0.3), frames)
    last = network.body[-3]
    spikes = []
    last.register_forward_hook(lambda _, given, out: spikes.append(out.detach()))
    logits = network(frames)
    features = AvgPool(2)(spikes[0]).flatten(2)
    assert features.shape == (2, 4, 3 * 3 * 64) and float(features.sum()) > 0
    torch.testing.assert_close(logits, network.body[-1].fc(features))


@pytest.mark.parametrize(("stride", "planes", "pooled"), [(1, 8, False), (2, 16, False), (1, 8, True), (2, 16, True)])
def test_a_block_is_its_equation(stride, planes, pooled):
    """Against the convolutions and norms called one by one, in float64: outputs, and gradients by the input and all weights."""
    block = scattered(Block(8, planes, stride, Plan(neurons.Spec(threshold=0.4, kernel="reference")), pooled)).double()
    x = torch.randn(3, 4, 8, 8, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 4, planes, 8 // stride, 8 // stride, dtype=torch.float64)

    def normed(part, z, stride=1):
        y = F.conv2d(z.flatten(0, 1), part.conv.weight, None, stride, part.conv.padding)
        return F.batch_norm(y, None, None, part.norm.bn.weight, part.norm.bn.bias, True)

    def equation(x):
        s = block.neuron(x)
        first = block.inner[0] if pooled and stride == 2 else block.inner
        second = block.inner[1] if pooled and stride == 2 else block.inner.neuron
        y = normed(first, s, 1 if pooled else stride)
        y = F.max_pool2d(y, 3, 2, 1) if pooled and stride == 2 else y
        y = normed(block.last, second(y.unflatten(0, (3, 4))))
        return y.unflatten(0, (3, 4)) + (x if stride == 1 else normed(block.shortcut, s, stride).unflatten(0, (3, 4)))

    leaves = [x, *(p for p in block.parameters() if p.requires_grad)]
    outcomes = [(y, torch.autograd.grad((y * weight).sum(), leaves)) for y in (block(x), equation(x))]
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-9)
    assert all(float(g.abs().max()) > 0 for g in outcomes[0][1])


def test_a_block_of_ms_resnet18_begins_as_its_shortcut():
    x = torch.randn(3, 4, 16, 8, 8)
    for name, begins in (("ms_resnet18", True), ("max_resnet18", False)):
        block = build(name, width=0.25).body[1]
        assert torch.equal(block(x), x) == begins


@pytest.mark.parametrize("norm", ["time", "step", "tdbn", "tebn"])
def test_the_end_of_a_branch_and_its_shortcut_share_the_threshold(norm):
    network = build("max_resnet18", width=0.25, norm=norm, threshold=0.5, steps=2)
    block = network.body[3]
    weights = [n.bn.weight[0].item() for n in (network.body[0].norm, block.inner[0].norm, block.last.norm, block.shortcut.norm)]
    assert weights == pytest.approx([0.5, 0.5, 0.5 / 2**0.5, 0.5 / 2**0.5] if norm == "tdbn" else [1] * 4)
    assert network(torch.randn(2, 3, 16, 16)).shape == (2, 2, 10)


@pytest.mark.parametrize("memory", ["bits", "least"])
@pytest.mark.parametrize(
    ("model", "norm", "kernel"),
    [("ms_resnet18", "time", "auto"), ("max_resnet18", "tebn", "auto"), ("max_resnet18", "step", "reference"), ("vgg_snn", "time", "auto")],
)
def test_keeping_less_for_the_backward_pass_changes_nothing(model, norm, kernel, memory):
    images, outcomes = torch.randn(8, 3, 32, 32), []
    for setting in ("speed", memory):
        torch.manual_seed(0)
        network = scattered(build(model, width=0.25, threshold=0.4, steps=3, norm=norm, memory=setting, kernel=kernel))
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images)
        logits.float().square().sum().backward()
        outcomes.append([logits.detach(), *(p.grad for p in network.parameters() if p.requires_grad), *network.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.parametrize("memory", ["bits", "least"])
def test_what_does_not_spike_is_not_kept_as_bits(memory):
    with pytest.raises(UserError, match="take --memory speed"):
        build("small_convnet", neuron="relu", memory=memory)


@pytest.mark.parametrize("memory", ["speed", "bits", "least"])
def test_what_stands_behind_a_norm_of_the_same_image_at_every_step_has_a_gradient(memory):
    images = torch.randn(2, 3, 8, 8).expand(4, 2, 3, 8, 8)
    grads = []
    for pool in (AvgPool(2), lambda y: F.avg_pool2d(y.flatten(0, 1), 2).unflatten(0, (4, 2))):
        torch.manual_seed(0)
        block = ConvNorm(Conv3x3(3, 16), "time", spiking=False, memory=memory)
        pool(block(images)).square().sum().backward()
        grads.append([p.grad for p in block.parameters()])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
