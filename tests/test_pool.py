"""Pooling: the same values and gradients as torch's, to the bit, and what is kept for them."""

import pytest
import torch
import torch.nn.functional as F

from spiketrain.kernels import pool

LAST = torch.channels_last
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [
    # x, factor
    ((3, 16, 8, 8), 2),
    ((2, 5, 7, 9), 2),
    ((1, 80, 15, 15), 2),
    ((2, 33, 10, 11), 3),
    ((2, 3, 7, 7), 7),
    ((4, 64, 31, 30), 15),
]
compiled = pytest.mark.skipif(pool._library(torch.float32) is None, reason="no C++ compiler on this machine")


def both(x, factor, grad, ways=(F.max_pool2d, pool.max_pool)):
    """Values and gradients of torch's and ours."""
    results = []
    for run in ways:
        leaf = x.detach().clone().requires_grad_()
        y = run(leaf, factor)
        y.backward(grad(y))
        results.append((y.detach(), leaf.grad))
    return results


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "factor"), SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["numbers", "ties"])
def test_values_and_gradients_are_those_of_torch(shape, factor, dtype, kind):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=draw).to(dtype).contiguous(memory_format=LAST)
    x = x.round() if kind == "ties" else x  # −0 and 0 among them: the first of equals has the gradient
    (theirs, by_them), (ours, by_us) = both(x, factor, lambda y: y + 1)
    assert torch.equal(ours, theirs) and torch.equal(by_us, by_them)
    assert ours.is_contiguous(memory_format=LAST) and by_us.is_contiguous(memory_format=LAST)
    assert type(pool.max_pool(x.requires_grad_(), factor).grad_fn).__name__ == "_MaxPoolBackward"  # not torch's own


@compiled
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "factor", "pieces"), [((3, 32, 8, 8), 2, 2), ((2, 15, 7, 9), 2, 3), ((2, 8, 5, 4), 1, 2), ((1, 66, 31, 31), 3, 2)]
)
@pytest.mark.parametrize("kind", ["numbers", "ties"])
def test_the_greatest_of_several_channels_is_that_of_the_reference(shape, factor, pieces, dtype, kind, monkeypatch):
    """And of the equation, pixel by pixel."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).contiguous(memory_format=LAST)
    x = x.round() if kind == "ties" else x
    ours = pool.max_pool(x, factor, pieces)
    c, down, across = shape[1] // pieces, shape[2] // factor, shape[3] // factor
    for n, k, i, j in ((0, 0, 0, 0), (shape[0] - 1, c - 1, down - 1, across - 1), (0, c // 2, down // 2, across // 2)):
        assert ours[n, k, i, j] == x[n, k::c, i * factor : (i + 1) * factor, j * factor : (j + 1) * factor].max()

    def reference(x, factor):
        with monkeypatch.context() as patch:
            patch.setattr(pool, "_library", lambda dtype: None)
            return pool.max_pool(x, factor, pieces)

    (theirs, by_them), (ours, by_us) = both(x, factor, lambda y: y + 1, (reference, lambda x, f: pool.max_pool(x, f, pieces)))
    assert torch.equal(ours, theirs) and torch.equal(by_us, by_them)


@compiled
def test_nan_is_the_maximum_and_minus_infinity_is_one_too():
    x = torch.full((1, 4, 4, 4), -torch.inf).contiguous(memory_format=LAST)
    x[0, 1, 2, 3] = torch.nan
    (theirs, by_them), (ours, by_us) = both(x, 2, torch.ones_like)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(by_us, by_them) and ours.isnan().sum() == 1


@compiled
def test_the_gradient_may_lie_otherwise_in_memory():
    x = torch.randn(2, 8, 6, 6).bfloat16().contiguous(memory_format=LAST)
    (_, by_them), (_, by_us) = both(x, 2, lambda y: torch.arange(y.numel()).view(y.shape).to(y.dtype))
    assert torch.equal(by_us, by_them)


@pytest.mark.parametrize(
    "x",
    [torch.randn(2, 4, 6, 6), torch.randn(2, 1, 6, 6), torch.randn(4, 6, 6), torch.randint(9, (2, 4, 6, 6)).to(memory_format=LAST)],
    ids=["plain", "one channel", "no batch", "whole numbers"],
)
def test_what_is_not_for_it_is_left_to_torch(x):
    assert torch.equal(pool.max_pool(x, 2), F.max_pool2d(x, 2))


def test_without_a_compiler_torch_does_it(monkeypatch):
    monkeypatch.setattr(pool, "_library", lambda dtype: None)
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=LAST).requires_grad_()
    y = pool.max_pool(x, 2)
    assert torch.equal(y, F.max_pool2d(x, 2)) and type(y.grad_fn).__name__ != "_MaxPoolBackward"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=str)
@pytest.mark.parametrize(("shape", "factor"), SHAPES, ids=str)
def test_the_mean_has_torchs_values_and_gradients_and_keeps_nothing(shape, factor, layout, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).contiguous(memory_format=layout)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        (theirs, by_them), (ours, by_us) = both(x, factor, lambda y: y + 1, (F.avg_pool2d, pool.avg_pool))
    assert torch.equal(ours, theirs) and torch.equal(by_us, by_them)
    assert by_us.is_contiguous(memory_format=layout)
    assert len(kept) == 1 and kept[0].shape == x.shape  # torch's
