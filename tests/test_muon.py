"""A step of Muon by the matrix unit: its equations, memory, and timm's optimiser with it."""

import copy

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from spiketrain import optimizers
from spiketrain.kernels import muon

pytestmark = pytest.mark.skipif(not muon.ready(), reason="no matrix unit (AMX), or no C++ compiler")

SHAPES = [(10, 70), (12, 12), (32, 32), (33, 65), (64, 27), (96, 40), (100, 900), (300, 100), (16, 8, 3, 3), (540, 1300)]
GIVEN = {"momentum": 0.95, "nesterov": False, "safety": 1.0, "eps": 1e-7, "coefficients": optimizers.QUINTIC, "decay": 0.9, "rate": 0.5}


def drawn(shape, seed=0):
    """Weight, gradient and momentum. Singular values of the gradient span three decades."""
    generator = torch.Generator().manual_seed(seed)
    weight, grad, buffer = (torch.randn(shape, generator=generator) for _ in range(3))
    columns = grad.numel() // len(grad)
    return weight, (grad.view(len(grad), -1) * torch.logspace(0, -3, columns)).view(shape), 0.1 * buffer


def equation(weight, grad, buffer, *, momentum, nesterov, safety, eps, coefficients, decay, rate):
    """The module's equations in float64: the weight and the momentum a step later, and the update's norm."""
    weight, grad, buffer = (x.double() for x in (weight, grad, buffer))
    buffer = buffer + (1 - momentum) * (grad - buffer)
    update = grad + momentum * (buffer - grad) if nesterov else buffer
    x = update.view(len(update), -1)
    x = x / max(safety * float(x.norm()), eps)
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return decay * weight - rate * x.view(weight.shape), buffer, rate * x.norm()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("changes", [{}, {"nesterov": True, "safety": 1.02}, {"coefficients": optimizers.QUINTIC[:1], "decay": 1.0}])
def test_a_step_is_the_equation(shape, changes):
    weight, grad, buffer = drawn(shape)
    wanted, momentum, size = equation(weight, grad, buffer, **GIVEN | changes)
    muon.step(weight, grad, buffer, **GIVEN | changes)
    torch.testing.assert_close(buffer, momentum.float())
    assert float((weight - wanted).norm()) < 0.01 * size  # two roundings to bfloat16 each time


@pytest.mark.parametrize("shape", [(33, 65), (300, 100), (200, 3000), (600, 520)])
def test_a_step_is_the_same_whatever_the_number_of_threads(shape):
    found, threads = [], torch.get_num_threads()
    for n in (1, 2, 5):
        tensors = drawn(shape)
        try:
            torch.set_num_threads(n)
            muon.step(*tensors, **GIVEN)
        finally:
            torch.set_num_threads(threads)
        found.append(tensors)
    for others in found[1:]:
        assert all(map(torch.equal, found[0], others))


@pytest.mark.parametrize("shape", [(33, 65), (65, 33), (200, 3000)])
def test_what_was_in_memory_before_does_not_matter(shape, monkeypatch):
    first, second = drawn(shape), drawn(shape)
    muon.step(*first, **GIVEN)
    monkeypatch.setattr(muon.allocator, "empty", lambda size, dtype: torch.full(size, 255, dtype=dtype))  # NaN in either format
    muon.step(*second, **GIVEN)
    assert all(map(torch.equal, first, second))


def test_without_a_gradient_a_weight_decays_alone():
    weight = torch.randn(40, 50)
    found = weight.clone()
    muon.step(found, torch.zeros(40, 50), torch.zeros(40, 50), **GIVEN)
    torch.testing.assert_close(found, 0.9 * weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_none_is_not_hidden(bad):
    weight, grad, buffer = drawn((40, 50))
    grad[3, 4] = bad
    muon.step(weight, grad, buffer, **GIVEN)
    assert bool(weight.isnan().any())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_timm_s_optimiser_makes_these_steps(memory_format):
    def made():
        torch.manual_seed(0)
        layers = nn.Conv2d(3, 40, 3), nn.Conv2d(40, 24, 1), nn.Flatten(), nn.Linear(24, 5)
        return nn.Sequential(*layers).to(memory_format=memory_format)

    def trained(prepare):
        network = made()
        optimizer = prepare(create_optimizer_v2(network, "muon", lr=0.02, weight_decay=0.1, momentum=0.9, ns_steps=7))
        for _ in range(4):
            grads = [torch.randn_like(p) for p in network.parameters()]
            for p, grad in zip(network.parameters(), grads, strict=True):
                p.grad = grad
            optimizer.step()
            assert all(torch.equal(p.grad, grad) for p, grad in zip(network.parameters(), grads, strict=True))
        return [p.detach() for p in network.parameters()]

    for ours, theirs, start in zip(trained(optimizers.quick), trained(lambda o: o), made().parameters(), strict=True):
        assert float((ours - theirs).norm()) < 0.02 * float((theirs - start.detach()).norm())
        assert ours.stride() == theirs.stride()


def test_a_step_is_the_same_from_a_state_that_lies_otherwise():
    torch.manual_seed(0)
    weight, grads = torch.randn(40, 24, 3, 3).to(memory_format=torch.channels_last), [torch.randn(40, 24, 3, 3) for _ in range(4)]
    found = []
    for otherwise in (False, True):
        p = nn.Parameter(weight.clone(memory_format=torch.preserve_format))
        optimizer = optimizers.quick(create_optimizer_v2([p], "muon", lr=0.02))
        for i, grad in enumerate(grads):
            p.grad = grad if otherwise else grad.to(memory_format=torch.channels_last)
            before = p._version
            optimizer.step()
            assert p._version > before
            if otherwise and i == 1:
                state = copy.deepcopy(optimizer.state_dict())
                state["state"][0]["momentum_buffer"] = state["state"][0]["momentum_buffer"].contiguous()
                optimizer = optimizers.quick(create_optimizer_v2([p], "muon", lr=0.02))
                optimizer.load_state_dict(state)
        found.append(p.detach())
    assert found[0].stride() == found[1].stride() == weight.stride()
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-4)
