"""tdBN and TEBN against their formulas written out here, their gradients, and the paths that they take through a layer."""

import math

import pytest
import torch

from spiketrain import layers, neurons
from spiketrain.errors import UserError
from spiketrain.layers import BatchNorm, NormSpec
from spiketrain.models import build, count_macs

KERNELS = pytest.mark.parametrize("kernel", ["reference", "auto"])


def normalised(x):
    """x − μ over σ, statistics over (T,B,H,W)."""
    places = (0, 1, 3, 4)
    return (x - x.mean(places, keepdim=True)) / (x.var(places, unbiased=False, keepdim=True) + 1e-5).sqrt()


def sequence(constant, shape=(5, 4, 3, 6, 6)):
    return torch.randn(shape[1:]).mul(2).add(1).expand(shape) if constant else torch.randn(shape) * 2 + 1


@pytest.mark.parametrize("branches", [1, 2])
def test_tdbn_begins_as_wide_as_the_threshold(branches):
    norm = BatchNorm(3, NormSpec("tdbn", threshold=0.4).one_of(branches))
    x = sequence(False)
    torch.testing.assert_close(norm(x), 0.4 / math.sqrt(branches) * normalised(x))
    torch.testing.assert_close(norm.bn.running_mean, 0.1 * x.mean((0, 1, 3, 4)))


def test_tdbn_knows_the_threshold_of_the_network():
    weights = [m.bn.weight for m in build("small_convnet", norm="tdbn", threshold=0.3, width=0.25).modules() if isinstance(m, BatchNorm)]
    assert len(weights) == 5 and all(bool((w == 0.3).all()) for w in weights)


@pytest.mark.parametrize("constant", [True, False])
def test_tebn_is_a_norm_over_time_with_a_factor_a_step(constant):
    norm, plain = BatchNorm(3, NormSpec("tebn", steps=5)), BatchNorm(3)
    x = sequence(constant)
    torch.testing.assert_close(norm(x), plain(x))
    factors = torch.tensor([0.5, 1.0, 2.0, -1.0, 3.0])
    with torch.no_grad():
        norm.p.copy_(factors)
        norm.bn.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        norm.bn.bias.copy_(torch.tensor([0.1, 0.0, -0.2]))
    gamma, beta = norm.bn.weight.view(-1, 1, 1), norm.bn.bias.view(-1, 1, 1)
    torch.testing.assert_close(norm(x), factors.view(-1, 1, 1, 1, 1) * (gamma * normalised(x) + beta), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("constant", [True, False])
def test_tebn_gradients(constant):
    norm = BatchNorm(2, NormSpec("tebn", steps=3)).double()
    with torch.no_grad():
        norm.p.copy_(torch.tensor([0.5, 1.5, -1.0]))
    given = torch.randn(*(() if constant else (3,)), 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x, p, weight, bias):
        changed = {"p": p, "bn.weight": weight, "bn.bias": bias}
        return torch.func.functional_call(norm, changed, (x.expand(3, *x.shape) if constant else x,))

    leaves = [t.detach().clone().requires_grad_() for t in (norm.p, norm.bn.weight, norm.bn.bias)]
    assert torch.autograd.gradcheck(run, (given, *leaves))


def test_tebn_in_evaluation_uses_running_statistics():
    norm = BatchNorm(3, NormSpec("tebn", steps=5))
    with torch.no_grad():
        norm.p.copy_(torch.arange(5.0))
    norm(sequence(False))
    norm.eval()
    x = sequence(False)
    mean, var = (b.view(-1, 1, 1) for b in (norm.bn.running_mean, norm.bn.running_var))
    torch.testing.assert_close(norm(x), torch.arange(5.0).view(-1, 1, 1, 1, 1) * (x - mean) / (var + 1e-5).sqrt())


@KERNELS
@pytest.mark.parametrize("name", ["tdbn", "tebn"])
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_is_its_norm_and_then_its_neuron(name, training, kernel):
    """Whatever path `fire` takes, for one step seen T times and for T steps, with and without a gradient."""
    spec = NormSpec(name, 0.5, 3)
    norm, neuron = BatchNorm(8, spec).train(training), neurons.LIF(threshold=0.5, kernel=kernel)
    if norm.p is not None:
        with torch.no_grad():
            norm.p.copy_(torch.tensor([2.0, 0.5, 4.0]))
    for x in (torch.randn(1, 6, 8, 16, 16), torch.randn(3, 6, 8, 16, 16)):
        expected = neuron(norm.again(x.expand(3, *x.shape[1:])))
        assert 0.01 < float(expected.detach().mean()) < 0.99
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                fired = layers.fire(norm, neuron, x, 3)
            assert float((fired != expected).float().mean()) < 1e-4  # a sum in another order may move a potential across the threshold


@KERNELS
@pytest.mark.parametrize("memory", ["bits", "least"])
@pytest.mark.parametrize("name", ["tdbn", "tebn"])
def test_keeping_less_changes_nothing(name, memory, kernel):
    images, outcomes = torch.randn(8, 3, 32, 32), []
    for setting in ("speed", memory):
        torch.manual_seed(0)
        network = build("small_convnet", width=0.25, threshold=0.3, steps=3, norm=name, memory=setting, kernel=kernel)
        logits = network(images)
        logits.square().sum().backward()
        outcomes.append([logits.detach(), *(p.grad for p in network.parameters() if p.requires_grad), *network.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    assert name == "tdbn" or all(float(m.p.grad.abs().min()) > 0 for m in network.modules() if isinstance(m, BatchNorm))


def test_a_network_with_tebn_has_a_number_of_steps():
    network = build("small_convnet", norm="tebn", width=0.25, steps=3)
    assert network(torch.randn(2, 3, 32, 32)).shape == (3, 2, 10)
    with pytest.raises(UserError, match="each of 3 steps and cannot take 4"):
        network(torch.randn(4, 2, 3, 32, 32))
    assert count_macs(network, (3, 32, 32)) == count_macs(build("small_convnet", width=0.25), (3, 32, 32))
    folded = build("small_convnet", norm="tebn", width=0.25, steps=3, flatten_time=True)
    assert folded(torch.randn(2, 3, 32, 32)).shape == (1, 2, 10) and count_macs(folded, (3, 32, 32)) > 0
