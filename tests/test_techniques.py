"""What accurate recipes are made of: integer training, weights to begin with, mirrored by turns, a curriculum of T, small images first."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

import spiketrain as st
from spiketrain import assemble, checkpoint, initial, optimizers, unroll
from spiketrain.cli import main
from spiketrain.data.image_augment import crop_and_flip, scaled
from spiketrain.data.images import in_memory
from spiketrain.errors import UserError
from spiketrain.functional import integer_scan
from spiketrain.neurons import IntegerLIF
from spiketrain.operations import quantum

CPU = torch.device("cpu")


def pictures(count=64, channels=3, side=16):
    """Smooth random images, so that neighbouring pixels have something to do with each other."""
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, side // 4, side // 4, generator=draw)
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") + 0.05 * torch.rand(
        count, channels, side, side, generator=draw
    )
    return (fine.clamp(0, 1) * 255).to(torch.uint8)


def made(**changes):
    images, labels = pictures(), torch.arange(64) % 4
    data = in_memory("pictures", (images, labels), (images[:8], labels[:8]), "0123")
    recipe = st.Recipe(model="fast_convnet", width=0.25, precision="fp32", steps=2, **changes)
    return recipe, data


def test_integer_training_counts_spikes_and_keeps_the_rest():
    x = torch.tensor([[0.4], [0.2], [9.0], [-1.0]], dtype=torch.float64)
    s, v = integer_scan(x, None, 0.5, torch.tensor(0.5, dtype=torch.float64), 4)
    # u = 0.4 → k = 1, v = −0.1; u = 0.15 → 0; u = 9.075 → 4, v = 7.075; u = 2.5375 → 4, v = 0.5375
    assert s.flatten().tolist() == [0.25, 0, 1, 1]
    assert v.item() == pytest.approx(0.5375)


def test_the_gradient_of_a_count_is_that_of_the_clipped_potential():
    neuron = IntegerLIF(threshold=0.5, levels=4)
    x = torch.tensor([[-0.1, 0.1, 1.0, 1.9, 2.1]], requires_grad=True)
    neuron(x).sum().backward()
    assert x.grad.flatten().tolist() == [0, 0.5, 0.5, 0.5, 0]  # 1/(levels · threshold) inside of 0 … 2


@pytest.mark.parametrize("model", ["fast_convnet", "small_convnet", "resnet9"])
def test_an_unrolled_network_is_the_same_with_binary_spikes(model):
    network = st.models.build(model, neuron="ilif", steps=2, width=0.25, threshold=0.4, levels=3).double()
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64)
    for _ in range(20):
        network(images)  # running statistics, so that neurons fire
    network.eval()
    twin = unroll.unroll(network)
    seen = []
    convolutions = [m for m in twin.modules() if isinstance(m, unroll.BinaryConv)]
    for conv in convolutions:
        conv.conv.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    with torch.no_grad():
        ours, theirs = network(images), twin(images)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert len(seen) == len(convolutions) > 3
    assert all(set(x.unique().tolist()) == {0.0, 1.0} for x in seen)
    assert unroll.difference(network, images) < 1e-12


def test_what_cannot_be_unrolled_is_refused():
    with pytest.raises(UserError, match="ilif"):
        unroll.unroll(st.models.build("small_convnet", width=0.25))
    averaged = st.models.build("cifar_convnet", neuron="ilif", width=0.05, steps=1, threshold=0.05)
    images = torch.randn(2, 3, 32, 32)
    averaged(images)
    with pytest.raises(UserError, match="not a count"):  # means over pixels are no counts
        unroll.unroll(averaged)(images)


@pytest.mark.parametrize("model", ["fast_convnet", "fast_convnet4"])
def test_whitened_patches_are_uncorrelated_and_of_one_variance(model, monkeypatch):
    monkeypatch.setattr(initial, "EPSILON", 1e-9)
    recipe, data = made(whiten=True)
    recipe = recipe.but(model=model)
    network = assemble.build_network(recipe, data, CPU)
    stem = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    plain = assemble.make_prepare(recipe, data).plain(data.train.inputs)
    with torch.no_grad():
        out = nn.functional.conv2d(plain, stem.weight).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(out), torch.eye(12), atol=2e-3, rtol=0)
    assert not stem.bias.any() and not any(p.requires_grad for p in stem.parameters())
    with pytest.raises(UserError, match="stem with 27 channels"):
        assemble.build_network(recipe.but(model="small_convnet"), data, CPU)


def test_dirac_convolutions_pass_their_input_on():
    recipe, data = made(dirac=True)
    convolutions = [m for m in assemble.build_network(recipe, data, CPU).modules() if isinstance(m, nn.Conv2d)]
    for conv in convolutions[1:]:
        x = torch.randn(2, conv.in_channels, 5, 5)
        shared = min(conv.in_channels, conv.out_channels)
        torch.testing.assert_close(conv(x)[:, :shared], x[:, :shared])


@pytest.mark.parametrize(("asked", "done"), [(3, 3), (0, 5)])
def test_muon_iterates_as_often_as_asked(asked, done):
    recipe, data = made(optimizer="muon", ns_steps=asked)
    optimizer, _ = assemble.make_optimizer(recipe, assemble.build_network(recipe, data, CPU), 4)
    assert {group["ns_steps"] for group in optimizer.param_groups} == {done}


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "momentum"])
def test_weights_are_updated_in_one_pass_and_rightly(name, resumed):
    """Also where the state of a checkpoint lies in another order than the weight."""
    recipe, _ = made(optimizer=name, weight_decay=0.1)
    draw = torch.Generator().manual_seed(2)
    first, grads = (torch.randn(n, 24, 16, 3, 3, generator=draw) for n in (1, 5))

    def trained(fused):
        layer = nn.Conv2d(16, 24, 3, bias=False).to(memory_format=torch.channels_last)
        with torch.no_grad():
            layer.weight.copy_(first[0])
        optimizer, scheduler = assemble.make_optimizer(recipe, layer, 4)
        for group in optimizer.param_groups:  # past the warm-up
            group["lr"] = 0.1
        if not fused:
            optimizer = type(optimizer)([{**g, "fused": None, "foreach": False} for g in optimizer.param_groups])
        for i, grad in enumerate(grads):
            if resumed and i == 3:
                state = optimizer.state_dict()
                for of_weight in state["state"].values():
                    of_weight |= {k: v.contiguous() for k, v in of_weight.items() if isinstance(v, torch.Tensor)}
                kept = SimpleNamespace(optimizer=state, scheduler=scheduler.state_dict(), ema={})
                checkpoint.resume(optimizer, scheduler, None, kept, Path("there"))
            layer.weight.grad = grad.to(memory_format=torch.channels_last)
            optimizer.step()
        if "adam" in name:
            assert {tuple(v.shape) for v in optimizer.state[layer.weight].values() if v.dim()} == {tuple(layer.weight.shape)}
        return optimizer, layer.weight.detach()

    (fused, ours), (plain, theirs) = trained(True), trained(False)
    assert [{g["fused"] for g in o.param_groups} for o in (fused, plain)] == [{True}, {None}]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert float((ours - first[0]).abs().max()) > 0.05


def test_a_gradient_may_lie_otherwise_than_its_weight():
    """Torch's own fused AdamW takes numbers for those of other places then."""
    weight = torch.randn(8, 4, 3, 3)
    found = []
    for fused in (True, None):
        p = nn.Parameter(weight.to(memory_format=torch.channels_last))
        optimizer = torch.optim.AdamW([p], 0.1, fused=fused)
        if fused:
            optimizer = optimizers.in_order_of_memory(optimizer)
        for _ in range(3):
            p.grad = p.detach().sin().contiguous()
            optimizer.step()
        found.append(p.detach())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (8, 4, 1, 3), (8, 4, 1, 1), (8, 1, 3, 3)])
def test_muon_makes_the_same_step_in_the_order_of_memory(shape):
    weight, found = torch.randn(shape), []
    for turned in (True, False):
        torch.manual_seed(1)
        p = nn.Parameter(weight.to(memory_format=torch.channels_last))
        optimizer = create_optimizer_v2([p], "muon", lr=0.1, weight_decay=0.01)
        if turned:
            optimizer = optimizers.in_order_of_memory(optimizer)
        for _ in range(3):
            p.grad = torch.randn(shape).to(memory_format=torch.channels_last)
            optimizer.step()
        assert p.shape == shape == p.grad.shape and p.is_contiguous(memory_format=torch.channels_last)
        found.append((p.detach(), {k: v for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor) and v.dim()}))
    (ours, state), (theirs, wanted) = found
    far = float((theirs - weight).norm())
    assert far > 0.1 and float((ours - theirs).norm()) < 0.02 * far  # in bfloat16 sums come out otherwise in another order
    assert state.keys() == wanted.keys() and state
    for name, value in state.items():
        torch.testing.assert_close(value, wanted[name])
        assert value.stride() == wanted[name].stride()


def test_every_image_is_seen_from_both_sides_in_two_epochs():
    recipe, data = made(flip=True, flip_by="turn", batch_size=16, normalize="none")
    loader = assemble.make_loader(recipe, data, CPU)
    images = data.train.inputs.float() / 255

    def mirrored(epoch):
        found = {}
        for batch, _ in loader.train(epoch):
            for x in batch:
                for i, image in enumerate(images):
                    if torch.allclose(x, image) or torch.allclose(x, image.flip(-1)):
                        found[i] = not torch.allclose(x, image)
        return found

    first, second, third = (mirrored(e) for e in range(3))
    assert len(first) == 64 and 10 < sum(first.values()) < 54
    assert all(first[i] != second[i] and first[i] == third[i] for i in first)


def test_a_crop_that_reflects_is_a_crop_of_the_mirrored_image():
    x = pictures(8)
    torch.manual_seed(1)
    ours = crop_and_flip(x, 3, False, fill="reflect")
    padded = nn.functional.pad(x.float(), (3,) * 4, mode="reflect").to(torch.uint8)
    windows = [padded[:, :, i : i + 16, j : j + 16] for i in range(7) for j in range(7)]
    assert all(any(torch.equal(ours[n], w[n]) for w in windows) for n in range(8))
    assert len({next(k for k, w in enumerate(windows) if torch.equal(ours[n], w[n])) for n in range(8)}) > 3


def test_a_curriculum_trains_with_fewer_steps_first_and_is_tested_with_all(tmp_path, monkeypatch):
    recipe = st.recipes.get("digits").but(epochs=4, steps=4, curriculum="1,4", division="open", limit=64, width=0.25)
    assert [recipe.steps_in(e) for e in range(4)] == [1, 1, 4, 4]
    seen = []
    step = st.train.__globals__["train_step"]

    def spied(recipe, network, *rest):
        seen.append(network.steps)
        return step(recipe, network, *rest)

    monkeypatch.setitem(st.train.__globals__, "train_step", spied)
    record = st.train(recipe, output=tmp_path, quiet=True, device="cpu")
    assert seen[1:] == [1, 1, 4, 4] and len(record.accuracy_by_step) == 4
    with pytest.raises(UserError, match="the last is steps"):
        recipe.but(curriculum="1,2")
    with pytest.raises(UserError, match="needs division open"):
        recipe.but(division="strict")


def test_small_images_first_and_tested_with_whole_ones(tmp_path, monkeypatch):
    recipe = st.recipes.get("digits").but(epochs=3, train_sides="6,8", limit=64, width=0.25)
    assert [recipe.side_in(e) for e in range(3)] == [6, 6, 8]
    seen = []
    step = st.train.__globals__["train_step"]

    def spied(recipe, network, optimizer, autocast, objective, inputs, *rest):
        seen.append(tuple(inputs.shape[-2:]))
        return step(recipe, network, optimizer, autocast, objective, inputs, *rest)

    monkeypatch.setitem(st.train.__globals__, "train_step", spied)
    record = st.train(recipe, output=tmp_path, quiet=True, device="cpu")
    assert seen == [(6, 6)] * 3 + [(8, 8)] and record.recipe["train_sides"] == [6.0, 8.0]  # the first is the warm-up


def test_a_scaled_image_keeps_its_mean_and_its_memory_order():
    x = pictures(side=32).float().contiguous(memory_format=torch.channels_last)
    small = scaled(x, 16)
    assert small.shape == (64, 3, 16, 16) and small.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(small.mean((2, 3)), x.mean((2, 3)), rtol=0.03)
    assert torch.allclose(scaled(torch.full_like(x, 7.0), 24), torch.full((64, 3, 24, 24), 7.0))
    assert scaled(x, 32) is x and scaled(x, 0) is x


def test_a_run_by_integers_can_be_tested_as_binary_spikes(tmp_path, capsys):
    flags = ["--neuron", "ilif", "--division", "open", "--steps", "1", "--epochs", "2", "--width", "0.5", "--precision", "fp32"]
    assert main(["train", "digits", *flags, "--into", str(tmp_path / "run"), "--quiet"]) == 0
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "run"), "--unrolled"]) == 0
    lines = capsys.readouterr().out.splitlines()
    said = float(lines[0].split()[2]), float(lines[-1].split()[4])
    assert said[0] == pytest.approx(said[1], abs=0.6)  # sums are rounded in another order: a sample or two of 359
    assert float(lines[-1].rsplit(" ", 1)[1]) < 1e-12


WRONG = [
    (("digits", "--curriculum", "1e18,4", "--division", "open"), "curriculum"),
    (("digits", "--curriculum", "1,2,4", "--epochs", "2", "--division", "open"), "no more than epochs"),
    (("digits", "--curriculum", "1,4", "--norm", "tebn", "--division", "open"), "tebn"),
    (("digits-dvs", "--curriculum", "1,6", "--division", "open"), "event frames"),
    (("digits-dvs", "--flip", "--flip-by", "turn"), "flip_by"),
    (("digits", "--crop", "20", "--crop-fill", "reflect"), "crop 20"),
    (("digits", "--model", "fast_convnet"), "larger images"),
    (("digits", "--train-sides", "6,7"), "train_sides must end with the side of square images, and digits has images of 8×8 pixels"),
    (("digits", "--train-sides", "4.5,8"), "whole numbers of pixels"),
    (("digits", "--train-sides", "4,6,8", "--epochs", "2"), "no more of them than epochs"),
    (("digits-dvs", "--train-sides", "8,16"), "event frames"),
    (("digits", "--model", "mnist_convnet"), "takes 6272 values"),
    (("digits", "--neuron", "ilif", "--no-through-time", "--division", "open"), "through_time"),
    (("digits", "--whiten", "--encoder", "rate"), "whiten"),
    (("digits", "--optimizer", "adamw", "--ns-steps", "3"), "ns_steps is of optimizer muon, not of adamw"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=lambda x: " ".join(x[1:]) if isinstance(x, tuple) else "")
def test_what_does_not_go_together_is_one_line(words, said, tmp_path, capsys):
    assert main(["train", *words, "--output", str(tmp_path), "--quiet", "--device", "cpu"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1] and all(line.startswith("framing") for line in lines[:-1])  # what was read before says so


@pytest.mark.parametrize("levels", [1, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counts_are_counted_as_spikes(levels, dtype):
    counts = torch.arange(levels + 1).repeat(3)
    x = (counts / levels).to(dtype).float()
    factor = quantum(x, levels)
    assert factor == levels and (x * factor).round().tolist() == counts.tolist()
    assert quantum(torch.rand(1000), levels) is None
