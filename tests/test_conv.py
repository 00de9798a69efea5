"""3×3 convolutions as matrix products and by Winograd: torch's values and gradients, and only where they are meant to be used."""

import math

import pytest
import torch
import torch.nn.functional as F

from spiketrain import layers
from spiketrain.functional import Rule
from spiketrain.kernels import amx, conv, cpp, native, products, winograd
from spiketrain.kernels.forms import Bits

LAST = torch.channels_last
SHAPES = [  # batch, channels in, channels out, height, width
    (5, 3, 4, 3, 3),
    (2, 5, 3, 4, 2),
    (4, 5, 3, 1, 1),
    (4, 2, 7, 1, 3),
    (3, 4, 6, 8, 7),
]


def pair(n, c, k, h, w, dtype=torch.float64):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, c, h, w, generator=draw, dtype=torch.float64).to(dtype).contiguous(memory_format=LAST)
    return x, (torch.randn(k, c, 3, 3, generator=draw, dtype=torch.float64) / c).to(dtype)


def by_torch(x, weight, grad, stride=1):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = F.conv2d(x, weight, None, stride, 1)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=["last", "first"])
def test_products_are_the_convolution_and_its_gradients(shape, layout):
    x, weight = pair(*shape)
    grad = torch.randn(shape[0], shape[2], *shape[3:], dtype=x.dtype).contiguous(memory_format=layout)
    x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    wanted = by_torch(x, weight, grad)
    found = products.forward(x, weight), products.by_input(grad, weight), products.by_weight(grad, x)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_gradient_by_weights_of_a_convolution_with_a_stride(shape):
    x, weight = (t.requires_grad_() for t in pair(*shape))
    y = F.conv2d(x, weight, None, 2, 1)
    grad = torch.randn(y.shape, dtype=y.dtype)
    (wanted,) = torch.autograd.grad(y, weight, grad)
    torch.testing.assert_close(products.by_weight(grad, x.detach(), 2), wanted, rtol=1e-12, atol=1e-12)


def has(dtype, *values):
    """A case of this dtype, which is skipped where the processor is not one that it is for."""
    lacks = winograd._library(dtype) is None
    return pytest.param(dtype, *values, marks=pytest.mark.skipif(lacks, reason=f"no Winograd for {dtype} on this processor"))


BLOCKS = [  # batch, channels in, channels out, height, width; less and more than a block of tiles, sides odd and even
    (2, 64, 64, 5, 7),
    (3, 128, 64, 4, 4),
    (1, 64, 192, 3, 2),
    (1, 64, 64, 2, 2),
    (7, 64, 128, 15, 14),
    (2, 512, 64, 9, 9),
    (1, 1024, 64, 9, 9),
]
has_bfloat16 = pytest.mark.skipif(winograd._library(torch.bfloat16) is None, reason="no Winograd for bfloat16 on this processor")
NARROW = {
    torch.bfloat16: [(3, 32, 160, 4, 4), (1, 96, 32, 1, 1), (30, 32, 96, 9, 12)],
    torch.float32: [(3, 16, 80, 4, 4), (1, 48, 16, 1, 1), (30, 32, 112, 9, 12)],
}
CASES = [has(dtype, s, stride) for dtype, narrow in NARROW.items() for s in BLOCKS + narrow for stride in winograd.FORMS[dtype].strides]


BOUND = {torch.bfloat16: 5e-3, torch.float32: 1e-5}


def made(shape, stride):
    """Something of the shape of y, of a case's."""
    n, _, k, h, w = shape
    return torch.randn(n, k, -(-h // stride), -(-w // stride)).contiguous(memory_format=LAST)


def every(grad, x, weight, stride=1):
    """By Winograd: the convolution, its gradient by x and by the weights."""
    forward = winograd.forward(x, weight, stride=stride)
    return forward, winograd.by_input(grad, weight, x, stride), winograd.by_weight(grad, x, stride)


def relative(ours, theirs):
    return float((ours.double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
@pytest.mark.parametrize(("dtype", "shape", "stride"), CASES)
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=["last", "first"])
def test_winograd_is_the_convolution_and_its_gradients(dtype, shape, stride, layout, threads):
    """Relative errors: in bfloat16 of half a per cent, where rounding to it alone makes 0.17; in float32 of 10⁻⁵."""
    x, weight = pair(*shape, dtype)
    grad = made(shape, stride).to(dtype)
    weight = weight.contiguous(memory_format=layout)
    some = (x > 1).to(dtype)
    some[-1, -1] = x[-1, -1]  # spikes, but for a channel of an image
    for pixels in (x, (x > 1).to(dtype), some):
        exact = by_torch(pixels.double(), weight.double(), grad.double(), stride)
        found = every(grad, pixels, weight, stride)
        assert [t.shape for t in found] == [t.shape for t in exact]
        assert [t.dtype for t in found] == [dtype, dtype, torch.float32]
        for ours, theirs in zip(found, exact, strict=True):
            assert relative(ours, theirs) < BOUND[dtype]
        assert relative(found[2], exact[2]) < BOUND[dtype] / 2  # whose errors are less, as channels have scales of their own


@has_bfloat16
@pytest.mark.parametrize("shape", BLOCKS + NARROW[torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_of_spikes_winograd_in_bfloat16_errs_less(shape, stride):
    """And of means of four: as they are exact when transformed, by the rounding of weights and of the result alone."""
    x, weight = pair(*shape, torch.bfloat16)
    for few in ((x > 1).bfloat16(), torch.randint(0, 5, x.shape).to(memory_format=LAST).bfloat16() / 4):
        exact = F.conv2d(few.double(), weight.double(), stride=stride, padding=1)
        assert relative(winograd.forward(few, weight, stride=stride), exact) < (4e-3 if stride == 1 else 3e-3)


@has_bfloat16
@pytest.mark.parametrize("other", [-0.0, -1.0, 2.0, 0.125, 0.2, 1e-30, 1e36, float("nan")], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_no_spike_is_seen_among_spikes(other, stride):
    """One value of a tile, wherever it lies: what is equal to it in five bits of its exponent, too."""
    pixels, weight = pair(1, 64, 64, 8, 8, torch.bfloat16)
    spikes, grad = (pixels > 1).bfloat16(), made((1, 64, 64, 8, 8), stride).bfloat16()
    for channel, row, column in ((0, 0, 0), (31, 3, 3), (32, 5, 2), (63, 7, 7)):
        x = spikes.clone(memory_format=torch.preserve_format)
        x[0, channel, row, column] = other
        exact = by_torch(x.double(), weight.double(), grad.double(), stride)
        for ours, theirs in list(zip(every(grad, x, weight, stride), exact, strict=True))[::2]:
            assert relative(ours, theirs) < BOUND[torch.bfloat16] if math.isfinite(other) else not ours.isfinite().all()


@has_bfloat16
def test_every_value_of_16_bits_is_taken_as_it_is():
    """By a weight of one, with the others zero: each value comes out as it went in, to what 16 bits can hold of its tile's greatest."""
    values = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    values = values[values.isfinite() & (values.abs() < 1e30)]
    x = torch.zeros(len(values), 32, 1, 1, dtype=torch.bfloat16).to(memory_format=LAST)
    x[:, 5, 0, 0] = values
    weight = torch.zeros(32, 32, 3, 3, dtype=torch.bfloat16)
    weight[7, 5, 1, 1] = 1
    y = winograd.forward(x, weight)
    near = (y[:, 7, 0, 0].double() - values.double()).abs()
    assert (near <= 2**-8 * values.double().abs() + 1e-36).all()  # its own value or the next one
    assert not y[:, :7].any() and not y[:, 8:].any()


@has_bfloat16
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 24, 68, 1e12, 1e30], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_winograd_in_bfloat16_is_as_exact_at_great_and_small_scales(scale, stride):
    """Of the input, and of the gradient: their squares may be beyond what float32 holds, their 16-bit scale near one. With tiles and
    channels of nothing in between."""
    x, weight = pair(3, 64, 64, 9, 9, torch.bfloat16)
    grad = made((3, 64, 64, 9, 9), stride).bfloat16()
    x[0, :, :5], x[:, 7], grad[:, 5] = 0, 0, 0
    for pixels, by in ((x * scale, grad), (x, grad * scale)):
        exact = by_torch(pixels.double(), weight.double(), by.double(), stride)
        for ours, theirs in zip(every(by, pixels, weight, stride), exact, strict=True):
            assert relative(ours, theirs) < BOUND[torch.bfloat16]


@has_bfloat16
@pytest.mark.parametrize("stride", [1, 2])
def test_of_the_greatest_sums_none_overflows(stride):
    """All pixels and all weights equal, where every product has the same sign: the sum is the product of both norms."""
    x = torch.ones(2, 512, 12, 12).bfloat16().contiguous(memory_format=LAST)
    for value in (0.75, -0.75):
        weight = torch.full((64, 512, 3, 3), value).bfloat16()
        grad = made((2, 512, 64, 12, 12), stride).bfloat16().fill_(-value)
        exact = by_torch(x.double(), weight.double(), grad.double(), stride)
        for ours, theirs in zip(every(grad, x, weight, stride), exact, strict=True):
            assert relative(ours, theirs) < BOUND[torch.bfloat16]


@has_bfloat16
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")], ids=str)
def test_what_is_not_finite_stays_so_where_it_is_seen(wrong):
    """Torch's result is then not finite at the pixels that see it; ours is not at these and at others of their tile."""
    x, weight = pair(2, 64, 64, 8, 8, torch.bfloat16)
    grad = torch.randn(2, 64, 8, 8).bfloat16().contiguous(memory_format=LAST)
    x[1, 3, 1, 1] = grad[1, 3, 1, 1] = wrong
    for found in (winograd.forward(x, weight), winograd.by_input(grad, weight)):
        assert found[0].isfinite().all() and not found[1, :, :3, :3].isfinite().any() and found[1, :, 5:].isfinite().all()
    assert not winograd.by_weight(grad, (x > 1).bfloat16())[3].isfinite().any()
    x[1, 3, 1, 1], weight[5, 3, 1, 1] = 0, wrong
    found = winograd.forward(x, weight)
    assert not found[:, 5].isfinite().any() and found[:, :5].isfinite().all()


@pytest.mark.parametrize("threads", [2, 4, 5], indirect=True)
@pytest.mark.parametrize("dtype", [has(torch.bfloat16), has(torch.float32)])
@pytest.mark.parametrize("sums", [1, 1 << 20, 40 << 20], ids=["64 channels at a time", "some", "all"])
def test_threads_share_sums_of_many_weights(dtype, threads, sums, monkeypatch):
    """Evenly or not, also where there are more threads than shares."""
    monkeypatch.setattr(winograd, "MANY", 1)
    monkeypatch.setattr(winograd, "SUMS", sums)
    for shape in [*NARROW[dtype], (7, 64, 128, 15, 14)]:
        x, weight = pair(*shape, dtype)
        grad = torch.randn(shape[0], shape[2], *shape[3:]).to(dtype).contiguous(memory_format=LAST)
        exact = by_torch(x.double(), weight.double(), grad.double())
        for ours, theirs in zip(every(grad, x, weight), exact, strict=True):
            assert relative(ours, theirs) < BOUND[dtype]


@pytest.mark.parametrize(("dtype", "stride"), [has(dtype, stride) for dtype, form in winograd.FORMS.items() for stride in form.strides])
def test_winograd_gives_the_same_bits_whatever_the_threads(dtype, stride):
    """And an image the same whatever others are there: of few tiles and of many, which go ways of their own."""
    before = torch.get_num_threads()
    for shape in ((40, 64, 128, 15, 15), (12, 128, 192, 8, 8)):
        x, weight = pair(*shape, dtype)
        grad = made(shape, stride).to(dtype)
        found = []
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            found.append(every(grad, x, weight, stride))
        torch.set_num_threads(before)
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
        assert torch.equal(winograd.forward(x[3:4], weight, stride=stride), found[0][0][3:4])
        assert torch.equal(winograd.by_input(grad[3:4], weight, x[3:4], stride), found[0][1][3:4])


@pytest.mark.parametrize(
    ("dtype", "flags", "compiler"),
    [
        (torch.bfloat16, "flags : avx2 fma", "g++"),
        (torch.bfloat16, "flags : avx512_vnni", None),
        (torch.float32, "flags : sse2", "g++"),
        (torch.float32, "Features : asimd", "g++"),
        (torch.float32, "flags : fma", None),
    ],
    ids=["no AVX512-VNNI", "no compiler", "no FMA", "no x86", "no compiler, float32"],
)
def test_without_what_winograd_needs_torch_convolves(dtype, flags, compiler, monkeypatch):
    monkeypatch.setattr(cpp, "processor", lambda: flags)
    monkeypatch.setattr(cpp, "compiler", lambda: compiler)
    amx._library.cache_clear(), winograd._library.cache_clear()
    try:
        x, weight = pair(64, 64, 64, 8, 8, dtype)
        assert not conv.pays(x, weight, 1, 1)
        assert torch.equal(conv.forward(x, weight), F.conv2d(x, weight, padding=1))
    finally:
        amx._library.cache_clear(), winograd._library.cache_clear()


def ways(x, channels, stride=1):
    """With what they are made of."""
    found = conv._forward_by(x, channels, stride), conv._weight_by(x, channels, stride)
    return tuple(getattr(way, "func", way) for way in found)


def test_each_shape_goes_its_fastest_way(monkeypatch):
    monkeypatch.setattr(amx, "_library", lambda: None)
    monkeypatch.setattr(winograd, "_library", lambda dtype: object())  # as on a processor that has it

    def by(n, c, k, side, dtype=torch.bfloat16, stride=1):
        return ways(torch.empty((n, c, side, side), dtype=dtype).contiguous(memory_format=LAST), k, stride)

    ours = winograd.forward, winograd.by_weight
    for dtype in (torch.bfloat16, torch.float32):
        for sizes in ((64, 256, 256, 8), (16, 64, 64, 8), (400, 64, 128, 15), (256, 512, 512, 4), (256, 1024, 1024, 4), (64, 256, 256, 6)):
            assert by(*sizes, dtype) == ours
        assert by(64, 512, 512, 4, dtype) == (None, products.by_weight)  # few tiles for so many weights
        assert by(64, 1024, 2048, 8, dtype) == (winograd.forward, None)
        assert by(400, 12, 64, 31, dtype) == by(400, 16, 64, 31, dtype) == (None, None)  # few channels
        assert by(256, 32, 64, 8, dtype) == by(256, 32, 32, 8, dtype) == (None, None)  # the digits recipe, whose figures the README prints
        assert by(15, 256, 512, 8, dtype, 2) == (None, None)
        assert by(64, 64, 64, 5, dtype) == (None, None)  # tiles of 4×4 pixels would be mostly padding
    assert by(64, 256, 512, 8, torch.float32, 2) == (None, products.by_weight)
    assert by(64, 128, 256, 16, torch.float32, 2) == (None, None)
    assert by(64, 256, 512, 8, stride=2) == by(64, 128, 256, 16, stride=2) == ours
    assert by(256, 64, 64, 16, stride=2) == (winograd.forward, None)  # few weights
    assert by(256, 256, 512, 4, stride=2) == (None, products.by_weight)  # few pixels
    assert by(256, 256, 512, 3) == (products.forward, products.by_weight)
    assert by(16, 512, 512, 2, torch.float32) == (None, products.by_weight)
    assert by(16, 256, 256, 4) == (None, products.by_weight)  # too few pixels for what transforms cost
    assert by(64, 256, 256, 8, torch.float64) == (None, None)
    assert by(64, 2048, 64, 8) == (None, None)  # where sums of whole numbers are less exact
    assert by(64, 2048, 64, 8, torch.float32) == ours
    monkeypatch.setattr(amx, "_library", object)
    for sizes in ((256, 32, 64, 8), (1, 2048, 64, 3), (256, 512, 512, 2)):
        assert by(*sizes) == by(*sizes, stride=2) == (amx.forward, amx.by_weight)
    assert by(256, 16, 64, 8) == by(256, 32, 48, 8) == (None, None)
    assert by(64, 256, 256, 8, torch.float32) == ours


@pytest.mark.parametrize(
    ("shape", "dtype", "stride"),
    [
        ((256, 256, 512, 3, 3), torch.bfloat16, 1),
        ((16, 256, 256, 4, 4), torch.bfloat16, 1),
        ((16, 512, 512, 2, 3), torch.float32, 1),
        ((100, 256, 256, 8, 5), torch.bfloat16, 1),
        ((16, 64, 128, 8, 7), torch.float32, 1),
        ((64, 128, 80, 7, 8), torch.float32, 1),
        ((16, 256, 512, 9, 8), torch.bfloat16, 2),
        ((16, 512, 256, 4, 7), torch.float32, 2),
        ((64, 128, 256, 16, 15), torch.bfloat16, 2),
        ((256, 64, 64, 7, 8), torch.bfloat16, 2),
    ],
    ids=str,
)
def test_forward_and_backward_are_torchs_whichever_way_is_taken(shape, dtype, stride):
    x, weight = pair(*shape, dtype)
    weight = weight.contiguous(memory_format=LAST)
    grad = torch.randn(shape[0], shape[2], *(-(-side // stride) for side in shape[3:])).to(dtype)
    exact = by_torch(x.double(), weight.double(), grad.double(), stride)
    like = torch.empty_like(x, device="meta")
    found = conv.forward(x, weight, stride), conv.by_input(grad, like, weight, stride), conv.by_weight(grad, x, weight, stride)
    for ours, theirs in zip(found, exact, strict=True):
        assert relative(ours, theirs) < BOUND[dtype]
    assert found[0].dtype is found[1].dtype is dtype


@pytest.mark.parametrize("shape", [(40, 64, 80, 8, 9), (40, 16, 32, 5, 5), (40, 256, 512, 3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("stride", [1, 2])
def test_of_images_that_are_made_as_they_are_needed_values_are_the_same(shape, dtype, stride, monkeypatch):
    x, weight = pair(*shape, dtype)
    x = (x > 0.5).to(dtype)
    monkeypatch.setattr(conv, "PART", 17 * x[0].numel() * x.element_size())  # 17 images; 16 is a multiple of eight
    asked = []

    class Watched(Bits):
        def images(self, first, last):
            asked.append((first, last))
            return super().images(first, last)

    bits = Watched(native.pack(x, Rule()), torch.empty_like(x, device="meta"), native)
    found = conv.forward_of(bits, weight, stride)
    assert torch.equal(found, conv.forward(x, weight, stride))
    if amx.forward_pays(x, shape[2], stride):
        assert asked == []
    else:
        ours = conv._imagewise(x[:16], shape[2], stride)
        assert asked == [(0, 16), (16, 32), (32, 40)] if ours else asked == [(0, 16), (0, 40)]


@pytest.mark.parametrize("taps", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bf16", [True, False])
def test_of_images_torchs_convolution_is_made_in_parts(taps, stride, bf16, monkeypatch):
    """Where memory is kept and the result is large; it is the same, and so is the gradient."""
    layer = layers.Conv(3, 32, taps, stride).to(memory_format=LAST)
    x = torch.randn(13, 3, 13, 18).contiguous(memory_format=LAST)

    def result():
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = layer(x)
        return y, *torch.autograd.grad(y.float().square().mean(), layer.weight)

    monkeypatch.setattr(conv.allocator, "keeps", lambda: False)
    whole = result()
    monkeypatch.setattr(conv, "CUT", 3 * whole[0][:1].numel() * whole[0].element_size())  # of three images
    assert not taken(layer, x)
    monkeypatch.setattr(conv.allocator, "keeps", lambda: True)
    made, torchs = [], F.conv2d
    monkeypatch.setattr(F, "conv2d", lambda x, *rest: made.append(len(x)) or torchs(x, *rest))
    parts = result()
    assert made == [3, 3, 3, 3, 1] and parts[0].dtype is whole[0].dtype and parts[0].is_contiguous(memory_format=LAST)
    for ours, theirs in zip(parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(RuntimeError):  # as torch has it of weights of float32
        layer(x.bfloat16())


@pytest.mark.parametrize("shape", [(64, 64, 128, 8, 9), (20, 32, 48, 15, 16)], ids=str)
@pytest.mark.parametrize("stride", [2, 3])
def test_a_thin_convolution_is_torchs(shape, stride):
    n, c, k, h, w = shape
    x = torch.randn(n, c, h, w).bfloat16().contiguous(memory_format=LAST).requires_grad_()
    layer = layers.Conv1x1(c, k, stride).bfloat16()
    y = layer(x)
    assert type(y.grad_fn).__name__ == "_ConvBackward" and y.is_contiguous(memory_format=LAST)
    grad = torch.randn_like(y)
    found = (y, *torch.autograd.grad(y, (x, layer.weight), grad))
    pixels, weight = x.detach().double().requires_grad_(), layer.weight.detach().double().requires_grad_()
    exact = F.conv2d(pixels, weight, None, stride)
    for ours, theirs in zip(found, (exact, *torch.autograd.grad(exact, (pixels, weight), grad.double())), strict=True):
        assert relative(ours.detach(), theirs.detach()) < BOUND[torch.bfloat16]
    single = amx.weight_pays(x, k)
    assert taken(layers.Conv1x1(c, k).bfloat16(), x.detach()) == single and not taken(layers.Conv1x1(c, k, stride), x.detach().float())


def taken(layer, x):
    """Whether a layer's convolution went through `conv`."""
    return type(layer(x.requires_grad_()).grad_fn).__name__ == "_ConvBackward"


def test_a_layer_takes_them_where_they_pay(monkeypatch):
    monkeypatch.setattr(amx, "_library", lambda: None)
    layer = layers.Conv3x3(256, 512).to(torch.bfloat16).to(memory_format=LAST)
    x = torch.randn(16, 256, 3, 3).bfloat16().contiguous(memory_format=LAST)
    assert taken(layer, x)
    assert not taken(layer, x.detach().contiguous())  # not channels last
    assert not taken(layer, x.detach()[:15])  # few rows
    assert not taken(layer, torch.randn(15, 256, 6, 6).bfloat16().contiguous(memory_format=LAST))  # many pixels
    assert taken(layers.Conv3x3(256, 512, 2).to(torch.bfloat16).to(memory_format=LAST), x.detach())
    assert not taken(layers.Conv3x3(32, 64, 2).bfloat16(), x.detach()[:, :32].contiguous(memory_format=LAST))  # a stride, few channels
    assert not taken(layers.Conv3x3(256, 512).double(), x.detach().double())


def test_a_layer_under_autocast_gives_gradients_in_the_dtype_of_its_weights():
    layer = layers.Conv3x3(256, 512).to(memory_format=LAST)
    x = torch.randn(16, 256, 3, 3).bfloat16().contiguous(memory_format=LAST).requires_grad_()
    grad = torch.randn(16, 512, 3, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        assert type(y.grad_fn).__name__ == "_ConvBackward" and y.dtype is torch.bfloat16
        assert not taken(layer, x.detach().float())  # which autocast makes bfloat16 first
    y.backward(grad)
    values, by_x, by_weight = by_torch(x.detach().double(), layer.weight.detach().double(), grad.double())
    assert x.grad.dtype is torch.bfloat16 and layer.weight.grad.dtype is torch.float32
    for ours, theirs in ((y, values), (x.grad, by_x), (layer.weight.grad, by_weight)):
        assert (ours.double() - theirs).abs().max() <= 1e-2 * theirs.abs().max()


def test_a_layer_without_memory_tells_shapes_alone():
    with torch.device("meta"):
        assert layers.Conv3x3(256, 512)(torch.empty(16, 256, 3, 3)).shape == (16, 512, 3, 3)


@pytest.mark.parametrize("shape", [(64, 64, 64, 8, 8), (64, 32, 64, 9, 5), (64, 12, 20, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("each", [1, 4])
def test_what_is_added_to_a_convolution_gets_its_gradient(shape, dtype, each):
    """A shortcut: of as many images, or of a quarter of them, as one that is the same at every step."""
    n, c, k, h, w = shape
    x, plus = pair(*shape, dtype)[0].requires_grad_(), torch.randn(n // each, k, h, w).to(dtype).to(memory_format=LAST).requires_grad_()
    layer = layers.Conv3x3(c, k).to(dtype).to(memory_format=LAST)
    y = layer(x, plus)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, plus, layer.weight), grad)
    exact = F.conv2d(x.double(), layer.weight.double(), None, 1, 1) + plus.double().repeat(each, 1, 1, 1)
    wanted = torch.autograd.grad(exact, (x, plus, layer.weight), grad.double())
    assert relative(y.detach(), exact.detach()) < BOUND[dtype]
    for ours, theirs, given in zip(found, wanted, (x, plus, layer.weight), strict=True):
        assert ours.dtype is dtype and ours.shape == given.shape and relative(ours, theirs.double()) < BOUND[dtype]
