"""3×3 and 1×1 convolutions by the processor's matrix unit: torch's values and gradients, whatever the shape."""

import pytest
import torch
import torch.nn.functional as F

from spiketrain.functional import Rule
from spiketrain.kernels import amx, cpp, native
from spiketrain.kernels.forms import Bits, Lazy, without_memory
from spiketrain.kernels.pool import Means

LAST = torch.channels_last
pytestmark = pytest.mark.skipif(  # a source that does not compile is to fail here, not to be skipped
    "amx_bf16" not in cpp.processor().split() or cpp.compiler() is None, reason="no matrix unit (AMX) in this processor, or no compiler"
)
SHAPES = [  # batch, channels in, channels out, height, width
    (2, 32, 32, 32, 32),  # rows of whole tiles
    (3, 64, 96, 16, 48),
    (5, 32, 64, 8, 8),  # tiles of several rows
    (7, 64, 32, 12, 12),
    (1, 32, 32, 13, 9),
    (9, 96, 64, 7, 5),  # few places, odd rows
    (4, 32, 32, 1, 1),
    (3, 64, 64, 2, 3),
    (2, 32, 32, 3, 40),
    (1, 32, 32, 60, 62),  # an image in parts, the last with fewer rows
    (40, 512, 64, 4, 4),  # patches of some of the channels
    (2, 1024, 32, 9, 9),
    (1, 64, 1024, 6, 6),
]


def drawn(shape, stride, side=3):
    n, c, k, h, w = shape
    draw = torch.Generator().manual_seed(1)

    def normal(*sizes):
        return torch.randn(*sizes, generator=draw).bfloat16().contiguous(memory_format=LAST)

    return normal(n, c, h, w), normal(k, c, side, side), normal(n, k, -(-h // stride), -(-w // stride))


def every(x, weight, grad, stride):
    return amx.forward(x, weight, stride=stride), amx.by_input(grad, weight, x, stride), amx.by_weight(grad, x, stride, weight.shape[2])


def exact(x, weight, grad, stride):
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    y = F.conv2d(x, weight, None, stride, weight.shape[2] // 2)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad.double())


@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("side", "layout"), [(3, LAST), (3, torch.contiguous_format), (1, LAST)], ids=["last", "first", "one-tap"])
def test_they_are_the_convolution_and_its_gradients(shape, stride, side, layout, threads):
    """Added in float32: y and the gradient by x are rounded once, to bfloat16."""
    x, weight, grad = drawn(shape, stride, side)
    weight = weight.contiguous(memory_format=layout)
    found, wanted = every(x, weight, grad, stride), exact(x, weight, grad, stride)
    assert [t.shape for t in found] == [t.shape for t in wanted]
    assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    assert all(t.is_contiguous(memory_format=LAST) for t in found)
    for ours, theirs, bound in zip(found, wanted, (2**-8, 2**-8, 1e-5), strict=True):
        size = theirs.abs().mean()  # beside which what is near zero may be rounded when terms are added
        assert ((ours - theirs).abs() <= bound * theirs.abs() + 1e-5 * size).all()


@pytest.mark.parametrize("shape", [(2, 24, 32, 31, 31), (3, 48, 64, 9, 10), (4, 31, 32, 5, 7), (2, 95, 64, 8, 16)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("side", "layout"), [(3, LAST), (3, torch.contiguous_format), (1, LAST)], ids=["last", "first", "one-tap"])
def test_what_is_read_may_have_channels_that_are_no_multiple_of_32(shape, stride, side, layout):
    def between_nans(t):
        around = torch.full((t.numel() + 128,), float("nan"), dtype=t.dtype)
        around[64:-64] = t.permute(0, 2, 3, 1).flatten()
        return around[64:-64].view(t.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)

    n, c, k, h, w = shape
    x, weight, grad = drawn(shape, stride, side)
    back, turned, other = drawn((n, k, c, h, w), stride, side)
    wanted, its = exact(x, weight, grad, stride), exact(back, turned, other, stride)
    x, other = between_nans(x), between_nans(other)
    for weights in (weight, weight.float()):
        y = amx.forward(x, between_nans(weights).contiguous(memory_format=layout), stride=stride)
        assert ((y - wanted[0]).abs() <= 2**-8 * wanted[0].abs() + 1e-5 * wanted[0].abs().mean()).all()
    for weights in (turned, turned.float()):
        gx = amx.by_input(other, between_nans(weights).contiguous(memory_format=layout), back, stride)
        assert ((gx - its[1]).abs() <= 2**-8 * its[1].abs() + 1e-5 * its[1].abs().mean()).all()
    found = amx.by_weight(grad, x, stride, side)
    assert found.shape == weight.shape
    torch.testing.assert_close(found.double(), wanted[2], rtol=1e-5, atol=1e-5 * float(wanted[2].abs().mean()))


@pytest.mark.parametrize("shape", [(12, 64, 64, 8, 8), (3, 128, 32, 32, 32), (30, 64, 128, 4, 4), (2, 1024, 512, 4, 4)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_bits_are_the_same_whatever_the_threads_and_the_other_images(shape, stride):
    x, weight, grad = drawn(shape, stride)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        found.append((*every(x, weight, grad, stride), amx.by_weight(grad, x, stride, 1)))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert torch.equal(amx.forward(x[1:2], weight, stride=stride), found[0][0][1:2])
    assert torch.equal(amx.by_input(grad[1:2], weight, x[1:2], stride), found[0][1][1:2])


@pytest.mark.parametrize("shape", [(6, 64, 96, 10, 7), (12, 32, 32, 3, 3), (6, 32, 32, 33, 31)], ids=str)
@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("images", [1, 3, 6])
def test_what_is_added_is_rounded_with_the_sum(shape, side, stride, images):
    x, weight, grad = drawn(shape, stride, side)
    plus = grad[:images] * 3
    wanted = exact(x, weight, grad, stride)[0] + plus.double().repeat(len(x) // images, 1, 1, 1)
    found = amx.forward(x, weight, stride=stride, plus=plus)
    assert ((found - wanted).abs() <= 2**-8 * wanted.abs() + 1e-5).all()


@pytest.mark.parametrize("shape", [(6, 64, 96, 10, 7), (2, 32, 64, 16, 16)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_weights_of_float32_are_rounded_as_torch_does(shape, stride):
    x, weight, grad = drawn(shape, stride)
    wide = torch.randn(weight.shape).contiguous(memory_format=LAST)
    for other in (wide, wide.double()):
        assert torch.equal(amx.forward(x, other, stride=stride), amx.forward(x, wide.bfloat16(), stride=stride))
        assert torch.equal(amx.by_input(grad, other, x, stride), amx.by_input(grad, wide.bfloat16(), x, stride))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize(("shape", "stride"), [((3, 32, 32, 8, 8), 1), ((3, 32, 32, 16, 16), 1), ((3, 32, 32, 9, 9), 2)], ids=str)
def test_what_is_not_finite_is_so_where_torch_has_it(shape, stride, wrong):
    """Places of a tile that are none of the image see what is finite, and give nothing."""
    x, weight, grad = drawn(shape, stride)
    x[1, 3, 4, 5] = grad[1, 3, 2, 1] = wrong
    found, wanted = every(x, weight, grad, stride), exact(x, weight, grad, stride)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite()) and 0 < theirs.isfinite().double().mean() < 1


def test_torchs_own_use_of_the_unit_is_not_disturbed():
    """Its library remembers what it set the unit to, thread by thread."""
    x, weight, grad = drawn((8, 64, 64, 8, 8), 1)
    a, b = torch.randn(77, 50).bfloat16(), torch.randn(50, 33).bfloat16()
    before = F.conv2d(x, weight, None, 1, 1), a @ b
    for _ in range(3):
        every(x, weight, grad, 1)
        assert torch.equal(a @ b, before[1])
        assert torch.equal(F.conv2d(x, weight, None, 1, 1), before[0])


@pytest.mark.parametrize("flags", ["flags : avx512_bf16", "flags : amx_bf16 amx_tile", ""])
def test_without_such_a_unit_it_is_not_used(flags, monkeypatch):
    monkeypatch.setattr(cpp, "processor", lambda: flags)
    amx._library.cache_clear()
    try:
        assert not amx.forward_pays(drawn((8, 64, 64, 8, 8), 1)[0], 64)
    finally:
        amx._library.cache_clear()


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[3] * s[4] > 1], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_of_bits_is_read_as_the_numbers_that_it_stands_for(shape, stride):
    n, c, _, h, w = shape
    x, weight, grad = drawn(shape, stride)
    spikes = (torch.rand(n, c, 2 * h, 2 * w) < 0.3).bfloat16().contiguous(memory_format=LAST)
    for form, numbers in (
        (Bits(native.pack(spikes[:, :, :h, :w].contiguous(memory_format=LAST), Rule()), without_memory(x), native), spikes[:, :, :h, :w]),
        (Means(native.pack(spikes, Rule()), without_memory(x), 2), F.avg_pool2d(spikes, 2)),
    ):
        lazy, plain = Lazy(form), numbers.contiguous(memory_format=LAST)
        for side in (3, 1):
            taps = weight[:, :, :side, :side].contiguous(memory_format=LAST)
            assert torch.equal(amx.forward(lazy, taps, stride=stride), amx.forward(plain, taps, stride=stride))
            assert torch.equal(amx.by_weight(grad, lazy, stride, side), amx.by_weight(grad, plain, stride, side))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_gradient_of_some_images_of_each_step_is_theirs(stride):
    _, weight, grad = drawn((12, 64, 32, 9, 10), stride)
    like = torch.empty(12, 64, 9, 10, dtype=grad.dtype, device="meta").contiguous(memory_format=LAST)
    for steps, batch, first, last in ((3, 4, 0, 4), (3, 4, 1, 3), (3, 4, 3, 4), (12, 1, 0, 1), (1, 12, 5, 9)):
        whole = amx.by_input(grad, weight, like, stride).unflatten(0, (steps, batch))
        found = amx.by_input(grad.unflatten(0, (steps, batch))[:, first:last], weight, like[: steps * (last - first)], stride)
        assert torch.equal(found, whole[:, first:last].flatten(0, 1))
