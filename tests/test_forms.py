"""Tensors that lie in memory in another form: the same numbers and gradients as those of plain tensors, whoever knows the form or not."""

import copy
import dataclasses
import io
import pickle

import pytest
import torch
import torch.nn.functional as F

from spiketrain import kernels, layers, neurons, saving
from spiketrain.functional import Rule
from spiketrain.kernels import amx, conv, forms, leaky, native, pool
from spiketrain.kernels.forms import Bits, Lazy, Pieces, Spread, dense, without_memory
from spiketrain.models import build

LAST = torch.channels_last
pytestmark = pytest.mark.skipif(not native.available(Rule(), torch.bfloat16), reason="no C++ compiler on this machine")
unit = pytest.mark.skipif(amx._library() is None, reason="no matrix unit (AMX) in this processor")


def drawn(*shape, chance=0.3, dtype=torch.bfloat16):
    """Spikes, channels last."""
    draw = torch.Generator().manual_seed(3)
    return (torch.rand(shape, generator=draw) < chance).to(dtype).contiguous(memory_format=LAST)


def as_bits(spikes):
    return Lazy(Bits(native.pack(spikes, Rule()), without_memory(spikes), native))


def test_whoever_does_not_know_a_form_is_given_numbers():
    spikes = drawn(6, 32, 5, 4)
    lazy = as_bits(spikes)
    assert (lazy.shape, lazy.stride(), lazy.dtype, lazy.device) == (spikes.shape, spikes.stride(), spikes.dtype, spikes.device)
    assert torch.equal(dense(lazy), spikes) and dense(spikes) is spikes
    assert torch.equal(lazy + 1, spikes + 1) and torch.equal(torch.cat([lazy, lazy]), torch.cat([spikes, spikes]))
    assert lazy.sum() == spikes.sum() and torch.equal(lazy[2:4], spikes[2:4]) and torch.equal(lazy.clone(), spikes)
    assert torch.equal(copy.deepcopy(spikes), lazy.contiguous() * 1) and "Bits" in repr(lazy)


def test_what_is_no_operation_is_of_the_numbers_or_says_that_it_cannot():
    spikes = drawn(2, 32, 3, 3)
    lazy = as_bits(spikes)
    assert lazy.tolist() == spikes.tolist() and (as_bits(spikes.float()).numpy() == spikes.float().numpy()).all()
    file = io.BytesIO()
    torch.save({"spikes": lazy}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)["spikes"]
    for other in (copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy)), loaded):
        assert not isinstance(other, Lazy) and torch.equal(other, spikes)
    for cannot in (lazy.share_memory_, lazy.data_ptr):
        with pytest.raises(NotImplementedError, match="clone it first"):
            cannot()


def test_views_keep_the_form():
    spikes = drawn(6, 32, 5, 4)
    lazy = as_bits(spikes)
    steps = lazy.unflatten(0, (2, 3))
    assert isinstance(steps, Lazy) and torch.equal(dense(steps), spikes.unflatten(0, (2, 3)))
    again = steps.detach().flatten(0, 1)
    assert isinstance(again, Lazy) and again.form is lazy.form and torch.equal(dense(again), spikes)


def test_nothing_changes_it_in_place():
    lazy = as_bits(drawn(2, 32, 3, 3))
    with pytest.raises(NotImplementedError, match="Bits: clone it first"):
        lazy.add_(1)


def test_parts_of_bits_are_those_images_of_each_step():
    spikes = drawn(12, 32, 3, 5)
    form = as_bits(spikes).form
    assert torch.equal(form.part(3, 1, 3).dense(), spikes.unflatten(0, (3, 4))[:, 1:3].flatten(0, 1))
    assert torch.equal(form.images(4, 9), spikes[4:9])
    means = pool.Means(form.part(1, 0, 12).bits, torch.empty(12, 32, 1, 2, dtype=spikes.dtype, device="meta", memory_format=LAST), 2)
    with pytest.raises(RuntimeError):
        dataclasses.replace(means, bits=means.bits[:-1]).part(3, 1, 3)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("packed", [True, False])
def test_means_of_bits_and_their_gradient_are_those_of_spikes(factor, dtype, packed):
    spikes = drawn(6, 64, 8, 12, dtype=dtype)
    wanted = F.avg_pool2d(spikes, factor)
    lazy = as_bits(spikes).requires_grad_()
    found = pool.avg_pool(lazy, factor, packed)
    assert isinstance(found, Lazy) == packed and torch.equal(dense(found), wanted)
    if packed:
        some = dense(Lazy(found.form.part(2, 1, 3)))
        assert torch.equal(some, wanted.unflatten(0, (2, 3))[:, 1:3].flatten(0, 1))
    grad = torch.randn(wanted.shape).to(dtype)
    (by_lazy,) = torch.autograd.grad(found, lazy, grad)
    plain = spikes.clone().requires_grad_()
    (by_plain,) = torch.autograd.grad(pool.avg_pool(plain, factor), plain, grad)
    assert isinstance(by_lazy, Lazy) and torch.equal(dense(by_lazy), by_plain)


def test_sides_that_windows_do_not_fill_are_pooled_as_numbers():
    spikes = drawn(3, 32, 5, 6)
    found = pool.avg_pool(as_bits(spikes), 2, True)
    assert not isinstance(found, Lazy) and torch.equal(found, F.avg_pool2d(spikes, 2))


NORMS = ["time", "step", "tebn"]


def scanned(x, norm, steps, packed, anew=None):
    neuron = neurons.LIF(tau=2.0, threshold=0.6, kernel="compiled")
    return neuron.normed(x, norm.batch(), steps, anew(x) if anew else None, packed)[0]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_neuron_that_gives_bits_and_takes_the_gradient_of_means_changes_no_bit(name, constant, dtype):
    draw = torch.Generator().manual_seed(1)
    steps, first = 3, torch.randn(1 if constant else 3, 4, 8, 6, 64, generator=draw).to(dtype).movedim(4, 2)
    grad = torch.randn(12, 64, 4, 3, generator=draw).to(dtype).contiguous(memory_format=LAST)
    outcomes = []
    for packed in (False, True):
        norm, x = layers.BatchNorm(64, layers.NormSpec(name, steps=steps)), first.clone().requires_grad_()
        spikes = scanned(x, norm, steps, packed)
        assert isinstance(spikes, Lazy) == packed
        means = pool.avg_pool(spikes.flatten(0, 1), 2, packed)
        outcomes.append((dense(spikes), dense(means), *torch.autograd.grad(means, [x, *norm.parameters()], grad)))
    assert 0.05 < float(outcomes[0][0].detach().float().mean()) < 0.95
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def in_pieces(x, images, some, constant=False):
    """A sequence `[T,P,C,1]` in pieces, each a tensor of its own; and how often they are made."""
    made = []

    def make(first, last):
        made.append((first, last))
        each = x.shape[1] // images
        return x[: 1 if constant else None, first * each : last * each].clone().expand(len(x), -1, -1, -1)

    return Pieces(make, x.shape, x.dtype, images, some, constant), made


@pytest.mark.parametrize("which", ["gradient", "currents", "both"])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("per_step", [False, True])
def test_the_backward_pass_in_pieces_is_that_of_the_whole(which, constant, per_step):
    """But for the order in which the sums over images are taken."""
    draw = torch.Generator().manual_seed(2)
    t, images, each, c = 3, 7, 10, 32
    x, grad = (torch.randn(t, images * each, c, 1, generator=draw).bfloat16() for _ in range(2))
    if constant:
        x = x[:1].expand(t, -1, -1, -1)
    s = t if per_step else 1
    affine, stats = (torch.rand(s, c) + 0.5, torch.randn(s, c) * 0.1), (torch.randn(s, c) * 0.1, torch.rand(s, c) + 0.5)
    coefficients = tuple(torch.full((1,), value) for value in (0.5, 0.5, 0.4, 2.0))
    cut_x, made_x = in_pieces(x, images, 3, constant)
    cut_grad, made_grad = in_pieces(grad, images, 2)
    given = cut_x if which != "gradient" else x, None, cut_grad if which != "currents" else grad, None
    rest = affine, stats, coefficients, Rule(), (True,) * 4
    whole, parts = native.backward(x, None, grad, None, *rest), native.backward(*given, *rest)
    gx = parts[0]
    if isinstance(gx, Pieces):
        assert not constant and which != "gradient"
        gx = torch.cat([gx.make(first, min(first + gx.some, images)) for first in range(0, images, gx.some)], 1)
    torch.testing.assert_close(gx.float(), whole[0].float(), rtol=1e-2, atol=1e-3)
    for found, wanted in zip((*parts[2:4], *parts[4]), (*whole[2:4], *whole[4]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    several = min(part.some for part in given if isinstance(part, Pieces))
    assert all(last - first <= several for first, last in made_x + made_grad)
    if which == "gradient" and not (constant and per_step):  # one pass
        assert [end for _, end in made_grad] == [2, 4, 6, 7]


@unit
@pytest.mark.parametrize("model", ["cifar_convnet", "dvs_convnet", "resnet9", "vgg_snn", "small_convnet"])
@pytest.mark.parametrize("memory", ["speed", "bits", "least"])
@pytest.mark.parametrize("piece", [1 << 12, 1 << 15])
def test_a_network_whose_gradients_are_made_in_parts_has_the_same(model, memory, piece, monkeypatch):
    """As one that makes everything at once: the same spikes, and gradients that differ by the order of sums (and bfloat16's roundings)."""
    frames = model in ("dvs_convnet", "vgg_snn")
    x = torch.randn(3, 6, 2, 48, 48).relu() if frames else torch.randn(6, 3, 32, 32)
    outcomes, made = [], []
    part = saving.ByInput.part
    monkeypatch.setattr(saving.ByInput, "part", lambda *a: made.append(a[1:]) or part(*a))
    for in_parts in (False, True):
        if in_parts:
            for name, value in (("SHORT", piece), ("LARGE", 4 * piece)):
                monkeypatch.setattr(saving, name, value)
            monkeypatch.setattr(forms, "PIECE", piece)
        torch.manual_seed(0)
        network = build(model, in_channels=x.shape[-3], width=0.25, threshold=0.3, steps=3, memory=memory).to(memory_format=LAST)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x)
        logits.float().square().sum().backward()
        outcomes.append((logits.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])))
        assert bool(made) == in_parts
    (logits, whole), (also, parts) = outcomes
    assert torch.equal(logits, also)
    assert (whole - parts).norm() < 2e-2 * whole.norm()


@unit
def test_a_graph_that_is_kept_gives_its_gradients_again(monkeypatch):
    """Where the gradient of currents would have taken their place."""
    monkeypatch.setattr(saving, "LARGE", 1)
    block = layers.ConvBlock(32, 32, neurons.Spec("lif", threshold=0.4), spiking=True).to(memory_format=LAST)
    spikes = drawn(24, 32, 16, 16).unflatten(0, (3, 8)).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = block(spikes).float().square().sum()
    ends = [spikes, *(p for p in block.parameters() if p.requires_grad)]
    first, second, third = (torch.autograd.grad(loss, ends, retain_graph=keep) for keep in (True, True, False))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for a, b in zip(first, third, strict=True):  # rounded once more, or once less, on its way
        torch.testing.assert_close(a.float(), b.float(), rtol=2e-2, atol=2e-2 * float(a.abs().max()))


@unit
@pytest.mark.parametrize("hooked", [None, lambda y: y, torch.Tensor.detach, lambda y: y[3:4], lambda y: y.unflatten(0, (3, 8))])
def test_currents_that_somebody_has_are_not_written_over(hooked, monkeypatch):
    monkeypatch.setattr(saving, "LARGE", 1)
    block = layers.ConvBlock(32, 32, neurons.Spec("lif", threshold=0.4), spiking=True).to(memory_format=LAST)
    spikes = drawn(24, 32, 16, 16).unflatten(0, (3, 8)).requires_grad_()
    seen, over = [], []
    if hooked:
        block.conv.register_forward_hook(lambda *given: seen.extend([hooked(given[2]), hooked(given[2]).clone()]))
    backward = native.backward
    monkeypatch.setattr(native, "backward", lambda *a, **k: over.append(k["out"] is a[0]) or backward(*a, **k))
    with torch.autocast("cpu", torch.bfloat16):
        out = torch.autograd.graph.get_gradient_edge(block(spikes))
    torch.autograd.grad(out, spikes, torch.ones(3, 8, 32, 16, 16, dtype=torch.bfloat16))
    assert over == [not hooked]
    assert not hooked or torch.equal(*seen)


@unit
@pytest.mark.parametrize("training", [True, False])
def test_spikes_go_to_a_convolution_as_bits_and_nobody_else_asks_for_numbers(training, monkeypatch):
    asked, means = [], []
    monkeypatch.setattr(Bits, "dense", lambda bits: asked.append(bits.like.shape) or torch.zeros(()))
    network = build("cifar_convnet", width=0.25, threshold=0.3, steps=3).to(memory_format=LAST).train(training)
    for neuron in network.modules():
        if isinstance(neuron, neurons.Neuron):
            neuron.register_forward_hook(lambda _, given, spikes: means.append(kernels.mean(spikes)))
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        body = network.body[:-1](torch.randn(16, 3, 32, 32).expand(3, 16, 3, 32, 32))
    assert isinstance(body, Lazy) and asked == [] and len(means) == (0 if training else 8)
    assert conv.reads_bits(body)


@unit
@pytest.mark.parametrize("model", ["cifar_convnet", "resnet18"])
def test_an_evaluated_network_gives_the_same_by_bits_and_by_numbers(model, monkeypatch):
    network = build(model, width=0.25, threshold=0.3, steps=3).to(memory_format=LAST)
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(x)  # so that the norms know something
        network.eval()
        found = network(x)
        monkeypatch.setattr(conv, "reads_bits", lambda x: False)
        assert torch.equal(found, network(x)) and len(found.unique()) > 4


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (3, 32, 5, 7), (2, 64, 40, 41)])
def test_the_mean_of_spikes_is_that_of_their_bits(shape):
    spikes = drawn(*shape)
    counted = native.count(as_bits(spikes).form.bits, torch.bfloat16, Rule())
    assert counted == spikes.double().sum() > 0
    assert kernels.mean(as_bits(spikes)) == pytest.approx(float(kernels.mean(spikes)), rel=1e-6)
    assert kernels.mean(as_bits(spikes)).dtype == kernels.mean(spikes).dtype == torch.float32


def test_a_gradient_in_pieces_is_put_together_for_whoever_wants_all():
    draw = torch.Generator().manual_seed(2)
    t, images, side, c = 2, 5, 3, 32
    x = torch.randn(t, images, side, side, c, generator=draw).movedim(4, 2)
    layout = leaky.Layout.of(x, True)
    pieces, _ = in_pieces(layout.flat(x), images, 2)
    form = leaky.InPieces(pieces, layout, without_memory(x))
    assert torch.equal(form.dense(), x) and torch.equal(dense(Lazy(form).flatten(0, 1)), x.flatten(0, 1))
    assert form.some(t) == 2 and torch.equal(form.part(t, 1, 3), x[:, 1:3].flatten(0, 1))


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("sides", [(8, 6), (7, 6)], ids=str)  # the second is not of whole pairs, and taken as numbers
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_neuron_that_takes_the_gradient_of_every_second_pixel_changes_no_bit(name, sides, dtype):
    draw = torch.Generator().manual_seed(1)
    first = torch.randn(3, 4, *sides, 64, generator=draw).to(dtype).movedim(4, 2)
    seen = torch.randn(12, 64, *(-(-side // 2) for side in sides), generator=draw).to(dtype).contiguous(memory_format=LAST)
    lazy = Lazy(Spread(seen, 2, without_memory(first.flatten(0, 1)), means=False))
    outcomes = []
    for grad in (dense(lazy), lazy):
        norm, x = layers.BatchNorm(64, layers.NormSpec(name, steps=3)), first.clone().requires_grad_()
        spikes = scanned(x, norm, 3, False)
        outcomes.append(torch.autograd.grad(spikes, [x, *norm.parameters()], grad.unflatten(0, (3, 4))))
    for a, b in zip(*outcomes, strict=True):
        assert torch.equal(a, b) and a.abs().max() > 0


def test_what_is_not_finite_in_a_gradient_by_fewer_pixels_is_so_for_its_own_pixel_alone():
    draw = torch.Generator().manual_seed(1)
    first = torch.randn(3, 4, 8, 6, 64, generator=draw).movedim(4, 2)
    seen = torch.randn(12, 64, 4, 3, generator=draw).contiguous(memory_format=LAST)
    seen[5, 40, 1, 1] = float("inf")  # step 1, image 1, pixel (2, 2)
    x, neuron = first.requires_grad_(), neurons.LIF(tau=2.0, threshold=torch.full((64,), 0.6), kernel="compiled")
    form = Spread(seen, 2, without_memory(first.detach().flatten(0, 1)), means=False)
    (found,) = torch.autograd.grad(neuron(x), x, Lazy(form).unflatten(0, (3, 4)))
    wrong = (~found.isfinite()).nonzero()
    assert len(wrong) and {tuple(place[1:]) for place in wrong.tolist()} == {(1, 40, 2, 2)}


@pytest.mark.parametrize("sides", [(8, 8), (8, 9)], ids=str)
def test_a_thin_convolution_of_bits_leaves_its_gradient_as_that_of_the_pixels_it_sees(sides):
    spikes, layer = drawn(256, 64, *sides), layers.Conv1x1(64, 96, 2).bfloat16()
    grad = torch.randn(256, 96, *(-(-side // 2) for side in sides)).bfloat16().contiguous(memory_format=LAST)
    outcomes = []
    for x in (spikes, as_bits(spikes)):
        x.requires_grad_()
        y = layer(x)
        outcomes.append((y.detach(), *torch.autograd.grad(y, (x, layer.weight), grad)))
    (y, by_x, by_weight), (same, lazy, alike) = outcomes
    assert isinstance(lazy, Lazy) and isinstance(lazy.form, Spread) and torch.equal(dense(lazy), by_x) and torch.equal(alike, by_weight)
    torch.testing.assert_close(same, y)


def test_a_gradient_of_means_is_spread_evenly():
    grad = torch.randn(2, 3, 2, 2).contiguous(memory_format=LAST)
    form = Spread(grad, 2, torch.empty(2, 3, 4, 4, device="meta").contiguous(memory_format=LAST))
    assert torch.equal(form.dense(), grad.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4)


def test_a_gradient_of_every_third_pixel_is_nothing_between():
    grad = torch.randn(2, 3, 2, 3).contiguous(memory_format=LAST)
    found = Spread(grad, 3, torch.empty(2, 3, 4, 9, device="meta").contiguous(memory_format=LAST), means=False).dense()
    assert torch.equal(found[:, :, ::3, ::3], grad) and found.is_contiguous(memory_format=LAST)
    assert int(found.count_nonzero()) == grad.numel()
