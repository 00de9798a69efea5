"""The equations against golden values and against formulas written out here in float64."""

import math

import pytest
import torch

from spiketrain import functional as F
from spiketrain.errors import UserError
from spiketrain.functional import Rule

INPUTS = torch.tensor([0.3, 0.3, 0.6, 0.1, 0.9, 0.0])
GOLDEN = {
    "if": ((1.0, 1.0), [0, 1, 1, 0, 1, 0], [0.3, 0, 0, 0.1, 0, 0]),
    "lif": ((0.5, 0.5), [0, 0, 0, 0, 1, 0], [0.15, 0.225, 0.4125, 0.25625, 0, 0]),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_older_benchmarks_trace(name):
    (decay, gain), spikes, potentials = GOLDEN[name]
    v = None
    for x, s_expected, v_expected in zip(INPUTS, spikes, potentials, strict=True):
        s, v = F.step(x.view(1, 1), v, decay, gain, 0.5, 2.0, Rule("qgate", strict=True))
        assert float(s) == s_expected
        assert float(v) == pytest.approx(v_expected, abs=1e-6)


@pytest.mark.parametrize(("strict", "fires"), [(True, 0.0), (False, 1.0)])
def test_at_the_threshold_exactly(strict, fires):
    s, _ = F.step(torch.tensor([[0.5]]), None, 1.0, 1.0, 0.5, 2.0, Rule(strict=strict))
    assert float(s) == fires


SLOPES = {
    "atan": lambda x, a: a / 2 / (1 + (math.pi / 2 * a * x) ** 2),
    "qgate": lambda x, a: max(0.0, a - a * a * abs(x)),
    "gate": lambda x, a: 1.0 if abs(x) < 1 / a else 0.0,
    "sigmoid": lambda x, a: a * math.exp(-a * x) / (1 + math.exp(-a * x)) ** 2,
    "straight_through": lambda x, a: a,
    "relu": lambda x, a: a if x > 0 else 0.0,
    "triangle": lambda x, a: max(0.0, 1 - a * abs(x)),
    "rectangle": lambda x, a: a if abs(x) < 1 / (2 * a) else 0.0,
    "superspike": lambda x, a: 1 / (1 + a * abs(x)) ** 2,
}


def test_every_surrogate_has_a_formula_here():
    assert SLOPES.keys() == F.SURROGATES.keys()


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("alpha", [0.7, 2.0, 5.0])
def test_slopes(name, alpha):
    points = torch.linspace(-1.3, 1.3, 53, dtype=torch.float64, requires_grad=True)
    F.spike(points, alpha, Rule(name)).sum().backward()
    expected = torch.tensor([SLOPES[name](float(x), alpha) for x in points.detach()], dtype=torch.float64)
    torch.testing.assert_close(points.grad, expected, rtol=1e-12, atol=1e-12)


GOLDEN_SLOPES = {
    "atan": [0.0920, 0.2196, 0.2884, 0.6185, 0.9102, 1],
    "qgate": [0, 0, 0, 1, 1.6, 2],
    "gate": [0, 0, 0, 1, 1, 1],
    "sigmoid": [0.2100, 0.3558, 0.3932, 0.4700, 0.4950, 0.5],
}


@pytest.mark.parametrize("name", GOLDEN_SLOPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_older_benchmarks_slopes(name, sign):
    x = sign * torch.tensor([1, 0.6, 0.5, 0.25, 0.1, 0])
    torch.testing.assert_close(F.SURROGATES[name].slope(x, 2.0), torch.tensor(GOLDEN_SLOPES[name]).float(), atol=6e-5, rtol=0)


@pytest.mark.parametrize("name", ["atan", "qgate", "sigmoid", "rectangle"])
def test_slopes_of_unit_area(name):
    x = torch.linspace(-400, 400, 4_000_001, dtype=torch.float64)
    assert float(torch.trapezoid(F.SURROGATES[name].slope(x, 2.0), x)) == pytest.approx(1, abs=2e-3)


PRIMITIVES = {
    "atan": lambda x, a: torch.atan(math.pi / 2 * a * x) / math.pi + 0.5,
    "sigmoid": lambda x, a: torch.sigmoid(a * x),
    "relu": lambda x, a: a * x.clamp(min=0),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_the_gradient_by_alpha_is_that_of_the_primitive(name):
    x = torch.randn(200, dtype=torch.float64)
    ours, theirs = (torch.tensor(1.7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(200, dtype=torch.float64)
    (F.spike(x, ours, Rule(name)) * weight).sum().backward()
    (PRIMITIVES[name](x, theirs) * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_every_learnable_alpha_is_tested():
    assert {n for n, s in F.SURROGATES.items() if s.alpha_slope} == PRIMITIVES.keys()


def adjoint(x, v0, decay, gain, theta, alpha, rule, weight):
    """Gradients of Σ weight·s + Σ v_T by x and v0, from the chain rule written as a sum over time, backwards."""
    steps = len(x)
    u, s, v = [], [], [v0]
    for t in range(steps):
        u.append(decay * v[-1] + gain * x[t])
        s.append((u[-1] > theta if rule.strict else u[-1] >= theta).double())
        v.append(u[-1] * (1 - s[-1]) if rule.reset == "hard" else u[-1] - theta * s[-1])
    by_v, by_x = torch.ones_like(v0), [None] * steps
    for t in reversed(range(steps)):
        g = torch.tensor([SLOPES[rule.surrogate](float(z), alpha) for z in (u[t] - theta).flatten()], dtype=torch.float64).view_as(v0)
        v_by_u = (1 - s[t]) if rule.reset == "hard" else torch.ones_like(v0)
        if not rule.detach:
            v_by_u = v_by_u - g * (u[t] if rule.reset == "hard" else theta)
        by_u = weight[t] * g + by_v * v_by_u
        by_x[t], by_v = gain * by_u, decay * by_u
    return torch.stack(by_x), by_v


@pytest.mark.parametrize("surrogate", ["atan", "qgate", "sigmoid"])
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_gradients_through_time(surrogate, reset, detach, strict):
    rule = Rule(surrogate, reset, detach, strict)
    x, v0, weight = torch.randn(7, 2, 3, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64), torch.randn(7, 2, 3).double()
    x, v0 = x.requires_grad_(), v0.requires_grad_()
    s, v = F.scan(x, v0, 0.6, 1.3, 0.8, 2.0, rule)
    ((s * weight).sum() + v.sum()).backward()
    by_x, by_v = adjoint(x.detach(), v0.detach(), 0.6, 1.3, 0.8, 2.0, rule, weight)
    torch.testing.assert_close(x.grad, by_x, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(v0.grad, by_v, rtol=1e-10, atol=1e-12)


def test_stepping_equals_scanning_and_channels_have_their_own_coefficients():
    x = torch.randn(5, 2, 3, 4, 4, dtype=torch.float64)
    decay, theta = torch.tensor([0.0, 0.5, 0.9]).double(), torch.tensor([0.2, 0.5, 1.0]).double()
    spikes, last = F.scan(x, None, decay, 1.0, theta, 2.0, Rule())
    for c in range(3):
        s, v = F.scan(x[:, :, c], None, float(decay[c]), 1.0, float(theta[c]), 2.0, Rule())
        assert torch.equal(s, spikes[:, :, c]) and torch.equal(v, last[:, c])
    v = None
    for t in range(5):
        s, v = F.step(x[t], v, decay, 1.0, theta, 2.0, Rule())
        assert torch.equal(s, spikes[t])


def test_the_state_is_float32_for_half_precision():
    x = torch.randn(6, 4, 8).bfloat16()
    s, v = F.scan(x, None, 0.5, 0.5, 0.3, 2.0, Rule())
    assert s.dtype == torch.bfloat16 and v.dtype == torch.float32
    assert torch.equal(s.float(), F.scan(x.float(), None, 0.5, 0.5, 0.3, 2.0, Rule())[0])


def test_wrong_names_and_shapes_are_named():
    with pytest.raises(UserError, match="did you mean 'atan'"):
        Rule("attan")
    with pytest.raises(UserError, match="hard"):
        Rule(reset="firm")
    with pytest.raises(UserError, match=r"\[C\]"):
        F.scan(torch.zeros(2, 3, 4), None, torch.ones(5), 1.0, 1.0, 2.0, Rule())
    with pytest.raises(UserError, match="at least one time step"):
        F.scan(torch.zeros(0, 3), None, 1.0, 1.0, 1.0, 2.0, Rule())
