"""3×3 convolutions as matrix products: torch's values and gradients, in whatever layout, and only where they are meant to be used."""

import pytest
import torch
import torch.nn.functional as F

from spiketrain import layers
from spiketrain.kernels import conv

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


def by_torch(x, weight, grad):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = F.conv2d(x, weight, None, 1, 1)
    return y.detach(), *torch.autograd.grad(y, (x, weight), grad)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [LAST, torch.contiguous_format], ids=["last", "first"])
def test_products_are_the_convolution_and_its_gradients(shape, layout):
    x, weight = pair(*shape)
    grad = torch.randn(shape[0], shape[2], *shape[3:], dtype=x.dtype).contiguous(memory_format=layout)
    x, weight = x.contiguous(memory_format=layout), weight.contiguous(memory_format=layout)
    wanted = by_torch(x, weight, grad)
    found = conv.products(x, weight), conv.products_by_input(grad, weight), conv.products_by_weight(grad, x)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize(
    ("shape", "dtype", "products"),  # whether the convolution and its gradient by x are by products, and the one by weights
    [
        ((256, 256, 512, 3, 3), torch.bfloat16, (True, True)),
        ((16, 256, 256, 4, 4), torch.bfloat16, (False, True)),
        ((16, 512, 512, 2, 3), torch.float32, (False, True)),
        ((20, 256, 256, 8, 5), torch.bfloat16, (False, False)),
    ],
    ids=str,
)
def test_forward_and_backward_are_torchs_whichever_way_is_taken(shape, dtype, products, mask):
    x, weight = pair(*shape, dtype)
    assert (conv.forward_pays(x, shape[2]), conv.weight_pays(x, shape[2])) == products
    weight = weight.contiguous(memory_format=LAST)
    exact = by_torch(x.double(), weight.double(), torch.ones(shape[0], shape[2], *shape[3:], dtype=torch.float64))
    y = conv.forward(x, weight)
    found = y, *conv.backward(torch.ones_like(y), x, weight, mask)
    bound = 1e-2 if dtype is torch.bfloat16 else 1e-5
    for ours, theirs, wanted in zip(found, exact, (True, *mask), strict=True):
        assert (ours is not None) == wanted
        if wanted:
            assert ours.dtype is dtype and (ours.double() - theirs).abs().max() <= bound * theirs.abs().max()


def taken(layer, x):
    """Whether a layer's convolution went through `conv`."""
    return type(layer(x.requires_grad_()).grad_fn).__name__ == "_ConvBackward"


def test_a_layer_takes_them_where_they_pay():
    layer = layers.Conv3x3(256, 512).to(torch.bfloat16).to(memory_format=LAST)
    x = torch.randn(16, 256, 3, 3).bfloat16().contiguous(memory_format=LAST)
    assert taken(layer, x)
    assert not taken(layer, x.detach().contiguous())  # not channels last
    assert not taken(layer, x.detach()[:15])  # few rows
    assert not taken(layer, torch.randn(16, 256, 6, 6).bfloat16().contiguous(memory_format=LAST))  # many pixels
    assert not taken(layers.Conv3x3(256, 512, 2).bfloat16(), x.detach())  # a stride
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
