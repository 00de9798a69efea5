"""SLTT: no gradient from a step to the one before. Against loops over time written out here, layer by layer and step by step."""

import pytest
import torch
from torch import nn

from spiketrain import functional, kernels, layers, neurons
from spiketrain.cli import main
from spiketrain.errors import UserError
from spiketrain.functional import Rule
from spiketrain.layers import BatchNorm
from spiketrain.models import build
from spiketrain.recipes import Recipe

KERNELS = pytest.mark.parametrize("kernel", ["reference", "auto"])
SHAPE = (6, 4, 8, 32, 32)
"""Large enough for `auto` to take a fast kernel where there is one."""


def looped(x, v, decay, gain, theta, alpha, reset):
    """Spikes of a loop over time whose potential is detached between steps; the slope is that of atan."""
    spikes = []
    for x_t in x:
        u = gain * x_t if v is None else decay * v.detach() + gain * x_t
        smooth = torch.atan(torch.pi / 2 * alpha * (u - theta)) / torch.pi + 0.5
        s = (u >= theta).to(u.dtype)
        spikes.append(s + (smooth - smooth.detach()))
        v = u * (1 - s) if reset == "hard" else u - theta * s
    return torch.stack(spikes)


def gradients(run, given, weight):
    leaves = [t.detach().clone().requires_grad_() for t in given]
    out = run(*leaves)
    return out.detach(), torch.autograd.grad((out * weight).sum(), leaves)


@KERNELS
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("detach", [True, False])
def test_gradients_are_those_of_a_loop_with_a_detached_state(reset, detach, kernel):
    given = [torch.randn(SHAPE).double() * 1.5, *(torch.tensor(c).double() for c in (0.6, 0.9, 0.5, 2.0))]
    weight = torch.randn(SHAPE).double()
    rule = Rule("atan", reset, detach, through_time=False)
    s, ours = gradients(lambda x, *c: kernels.scan(x, None, *c, rule, kernel, keep=False)[0], given, weight)
    expected, theirs = gradients(lambda x, *c: looped(x, None, *c, reset), given, weight)
    assert torch.equal(s, expected) and 0.05 < float(s.mean()) < 0.95
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    _, through = gradients(lambda x, *c: functional.scan(x, None, *c, Rule("atan", reset, detach))[0], given, weight)
    assert not torch.allclose(through[0], ours[0], atol=1e-2)


@KERNELS
def test_one_step_is_the_same_with_and_without(kernel):
    given, weight = [torch.randn(1, *SHAPE[1:]), torch.tensor(0.9), torch.tensor(0.5)], torch.randn(1, *SHAPE[1:])
    runs = [
        lambda x, gain, theta, rule=rule: kernels.scan(x, None, 0.5, gain, theta, 2.0, rule, kernel)[0]
        for rule in (Rule(), Rule(through_time=False))
    ]
    (s, through), (same, without) = (gradients(run, given, weight) for run in runs)
    assert torch.equal(s, same) and all(torch.equal(a, b) for a, b in zip(through, without, strict=True))


@KERNELS
def test_a_step_reaches_its_own_input_only(kernel):
    x = torch.randn(SHAPE).requires_grad_()
    neurons.LIF(threshold=0.3, through_time=False, kernel=kernel)(x)[3].sum().backward()
    assert [bool(g.any()) for g in x.grad] == [False, False, False, True, False, False]


def test_it_is_learning_online():
    """A backward pass after every step, with states detached, as the paper has it, adds up to the gradient of the whole sequence."""
    torch.manual_seed(0)
    first, second, last = (nn.Linear(a, b).double() for a, b in ((12, 20), (20, 20), (20, 5)))
    parameters = [p for layer in (first, second, last) for p in layer.parameters()]
    spec = neurons.Spec("plif", threshold=0.3, through_time=False, kernel="reference")
    one, two = (spec.make().double() for _ in range(2))
    parameters += [one.w, two.w]
    x, labels = torch.randn(5, 16, 12).double() * 2, torch.randint(0, 5, (16,))

    logits = layers.fold(last, two(layers.fold(second, one(layers.fold(first, x)))))
    sum(nn.functional.cross_entropy(o, labels) for o in logits).backward()
    whole = [p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None
    a = b = None
    for x_t in x:
        s, a = one.step(first(x_t), a)
        s, b = two.step(second(s), b)
        nn.functional.cross_entropy(last(s), labels).backward()
        a, b = a.detach(), b.detach()
    torch.testing.assert_close([p.grad for p in parameters], whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("neuron", [neurons.LIF, neurons.PLIF])
def test_norm_and_neuron_in_one_pass(neuron):
    weight, outcomes = torch.randn(SHAPE).double(), []
    x = torch.randn(SHAPE).double()
    for kernel in ("reference", "auto"):
        norm, fired = BatchNorm(8).double(), neuron(threshold=0.4, learn_threshold=True, through_time=False, kernel=kernel).double()
        given = x.clone().requires_grad_()
        s = layers.fire(norm, fired, given, len(x))
        (s * weight).sum().backward()
        outcomes.append([s.detach(), given.grad, *(p.grad for p in (*norm.parameters(), *fired.parameters()) if p.requires_grad)])
    assert len(outcomes[0]) == (5 if neuron is neurons.LIF else 6)
    torch.testing.assert_close(*outcomes, rtol=1e-9, atol=1e-9)


def test_every_neuron_of_a_network_has_it():
    network = build("small_convnet", through_time=False, width=0.25)
    rules = [m.rule for m in network.modules() if isinstance(m, neurons.Leaky)]
    assert len(rules) == 5 and not any(rule.through_time for rule in rules)


def test_it_belongs_to_the_open_division(capsys, tmp_path):
    assert not Recipe(through_time=False, division="open").through_time
    with pytest.raises(UserError, match="division open"):
        Recipe(through_time=False)
    assert main(["train", "digits", "--no-through-time", "--output", str(tmp_path)]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1 and "--division open" in printed[0]
