"""Every fast twin against its reference: the same spikes, and all gradients."""

import pytest
import torch

from spiketrain import functional, kernels
from spiketrain.errors import UserError
from spiketrain.functional import Rule

compiler = pytest.mark.skipif(not kernels.compiler_found(), reason="no C++ compiler on this machine")
FAST = [k for k in kernels.KERNELS if k not in ("auto", "reference")]
SHAPES = {"vector": (3, 7), "image": (2, 5, 3, 3)}


def inputs(steps, shape, dtype, layout):
    x = torch.randn(steps, *shape).to(dtype)
    if layout == "channels-last":
        x = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    if layout == "constant":
        x = x[0].expand(steps, *shape)
    return x


def results(scan, x, shape, rule, channels, start):
    """Spikes, last potential, and gradients by everything, of one implementation."""
    wide = functional.widen(x).dtype
    generator = torch.Generator().manual_seed(1)
    size = (shape[1],) if channels else ()
    coefficients = [(base + 0.1 * torch.rand(size, generator=generator)).to(wide).requires_grad_() for base in (0.5, 0.9, 0.6, 2.0)]
    v = torch.rand(shape, generator=generator).to(wide).requires_grad_() if start else None
    leaf = x[0].clone().requires_grad_() if x.stride(0) == 0 and len(x) > 1 else x.detach().requires_grad_()
    given = leaf.expand_as(x) if leaf.dim() < x.dim() else leaf
    s, last = scan(given, v, *coefficients, rule)
    weight = torch.randn(s.shape, generator=generator).to(s.dtype)
    ((s * weight).sum().to(wide) + last.sum()).backward()
    wanted = [leaf, *coefficients] + ([v] if start else [])
    return s.detach(), last.detach(), [p.grad for p in wanted]


CASES = [
    # steps, shape, dtype, layout, rule, coefficient a channel, from a given potential
    (1, "image", torch.float32, "plain", Rule(), False, False),
    (4, "image", torch.float32, "channels-last", Rule("qgate", strict=True), False, False),
    (4, "image", torch.float32, "channels-last", Rule("atan"), True, True),
    (4, "image", torch.float32, "constant", Rule("atan", "soft", False), False, True),
    (4, "image", torch.bfloat16, "channels-last", Rule("sigmoid", "hard", False), False, False),
    (33, "vector", torch.float64, "plain", Rule("atan", "hard", False), False, True),
    (33, "vector", torch.float32, "plain", Rule("triangle", "soft"), True, False),
]


@compiler
@pytest.mark.parametrize("kernel", FAST)
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(part) for part in c[:4]) + f"-{c[4].surrogate}-{c[4].reset}")
def test_a_fast_kernel_equals_the_reference(kernel, case):
    steps, name, dtype, layout, rule, channels, start = case
    shape = SHAPES[name]
    x = inputs(steps, shape, dtype, layout)
    s, v, grads = results(functional.scan, x, shape, rule, channels, start)
    fast_s, fast_v, fast_grads = results(lambda *a: kernels.scan(*a, kernel), x, shape, rule, channels, start)
    assert 0.05 < float(s.float().mean()) < 0.95
    assert torch.equal(s, fast_s)
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(fast_v, v, rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(fast_grads, grads, strict=True):
        if theirs is None:  # autograd saw no way to it; zero is the same
            assert ours is None or not ours.any()
        else:
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * 5)


@compiler
def test_the_layout_of_the_output_is_that_of_the_input():
    x = inputs(4, SHAPES["image"], torch.float32, "channels-last")
    s, _ = kernels.scan(x, None, 0.5, 0.5, 0.5, 2.0, Rule(), "compiled")
    assert s[0].is_contiguous(memory_format=torch.channels_last)


def test_auto_takes_the_reference_for_small_sequences_and_unknown_kernels_are_named():
    assert kernels.choose("auto", torch.zeros(4, 8)) == "reference"
    with pytest.raises(UserError, match="did you mean 'compiled'"):
        kernels.choose("compild", torch.zeros(4, 8))
