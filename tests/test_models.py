"""Neurons, layers and networks: facts of the older benchmark, and properties that every registered model has."""

import copy

import pytest
import torch
from torch import nn

from spiketrain import layers, neurons
from spiketrain.errors import UserError
from spiketrain.functional import Rule
from spiketrain.kernels import native
from spiketrain.models import MODELS, build, count_macs, count_parameters

FACTS = [
    # model, channels, classes, side, parameters, million MACs a step
    ("cifar_convnet", 3, 10, 32, 19_489_562, 1366.04),
    ("cifar_convnet", 3, 100, 32, 19_581_812, 1366.13),
    ("dvs_convnet", 2, 10, 48, 7_532_826, 769.73),
    ("dvs_convnet", 2, 11, 48, 7_533_339, 769.73),
    ("dvs_convnet", 2, 101, 48, 7_579_509, 769.77),
    ("dvs_convnet7", 2, 10, 48, 5_172_504, 748.49),
    ("resnet18", 3, 10, 32, 11_173_104, 555.42),
    ("resnet18", 3, 100, 32, 11_219_274, 555.47),
    ("resnet18", 2, 10, 48, 11_172_528, 1248.37),
    ("resnet18_pooled", 2, 10, 48, 11_172_528, 314.09),
    ("mnist_convnet", 1, 10, 28, 13_016_722, 42.67),
]


@pytest.mark.parametrize(("name", "channels", "classes", "side", "parameters", "macs"), FACTS)
def test_parameters_and_operations_of_the_older_benchmark(name, channels, classes, side, parameters, macs):
    network = build(name, in_channels=channels, num_classes=classes)
    assert count_parameters(network) == parameters
    assert count_macs(network, (channels, side, side)) / 1e6 == pytest.approx(macs, abs=0.006)


@pytest.mark.parametrize(("name", "nodes"), [("cifar_convnet", 8), ("dvs_convnet", 8), ("dvs_convnet7", 7), ("resnet18", 19)])
def test_a_learned_time_constant_is_one_number_a_node(name, nodes):
    lif, plif = (count_parameters(build(name, neuron=n)) for n in ("lif", "plif"))
    assert plif - lif == nodes


SIDES = {"mnist_convnet": 28, "digits_convnet": 8}


@pytest.fixture(params=sorted(MODELS))
def small(request):
    """Every registered model, narrow, on small images."""
    side = SIDES.get(request.param, 32 if "imagenet" not in request.param else 64)
    network = build(request.param, width=0.125, in_channels=2, num_classes=5, steps=3, threshold=0.3, kernel="reference")
    return network, torch.randn(4, 2, side, side)


def test_images_and_the_same_frames_give_the_same_logits(small):
    network, images = small
    network.eval()
    with torch.no_grad():
        shown = network(images)
        frames = network(images.repeat(3, 1, 1, 1, 1))
    assert shown.shape == (3, 4, 5)
    torch.testing.assert_close(shown, frames, rtol=1e-4, atol=1e-5)


def test_every_trainable_parameter_gets_a_gradient(small):
    network, images = small
    network(images).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in network.named_parameters() if not p.requires_grad and p.grad is not None] == []


def test_samples_and_calls_do_not_see_each_other(small):
    network, images = small
    with torch.no_grad():
        for _ in range(30):  # until the running statistics are those of the images: a silent network would prove nothing
            network(images)
        network.eval()
        before = network(images)
        other = images.clone()
        other[1] += 1
        after = network(other)
        again = network(images)
    assert torch.equal(before, again)
    keep = [0, 2, 3]
    torch.testing.assert_close(before[:, keep], after[:, keep], rtol=1e-4, atol=1e-5)
    assert not torch.equal(before[:, 1], after[:, 1])


@pytest.mark.parametrize("constant", [True, False])
def test_norm_a_step_at_a_time_is_a_loop_over_time(constant):
    ours, theirs = layers.BatchNorm(3, "step"), nn.BatchNorm2d(3)
    x = torch.randn(5, 4, 3, 6, 6)
    x = x[0].expand(5, 4, 3, 6, 6) if constant else x
    torch.testing.assert_close(ours(x), torch.stack([theirs(x_t) for x_t in x]))
    torch.testing.assert_close(ours.bn.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.bn.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), torch.stack([theirs.eval()(x_t) for x_t in x]))


def test_norm_over_time_is_one_norm_of_all_steps():
    ours, theirs = layers.BatchNorm(3), nn.BatchNorm2d(3)
    x = torch.randn(5, 4, 3, 6, 6)
    torch.testing.assert_close(ours(x), theirs(x.flatten(0, 1)).view_as(x))


def test_encoders():
    x = torch.tensor([0.0, 0.2, 0.5, 1.0]).view(1, 1, 2, 2)
    assert torch.equal(layers.encode(x, 3), x.expand(3, 1, 1, 2, 2))
    rate = layers.encode(x, 4000, "rate")
    torch.testing.assert_close(rate.mean(0), x, atol=0.03, rtol=0)
    first = layers.encode(x, 4, "ttfs")  # 1 fires at step 0, 0.5 at step 2 with weight 1/3, 0.2 at the last, 0 never
    assert first[:, 0, 0].reshape(4, 4).tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, pytest.approx(1 / 3), 0], [0, 0.25, 0, 0]]
    phase = layers.encode(torch.full((1, 1, 1, 1), 160 / 256), 8, "phase")
    assert phase.flatten().tolist() == [0.5, 0, 0.125, 0, 0, 0, 0, 0]
    with pytest.raises(UserError, match="did you mean 'rate'"):
        layers.encode(x, 4, "rates")


def test_time_flattened_into_channels():
    network = build("small_convnet", width=0.25, in_channels=2, steps=3, flatten_time=True, kernel="reference")
    assert network(torch.randn(3, 2, 2, 32, 32)).shape == (1, 2, 10)
    with pytest.raises(UserError, match="exactly 3 steps"):
        network(torch.randn(4, 2, 2, 32, 32))


def test_wrong_inputs_and_names_are_named():
    network = build("digits_convnet", in_channels=1)
    with pytest.raises(UserError, match=r"\[B,1,H,W\]"):
        network(torch.zeros(2, 3, 8, 8))
    wrongs = (({"neuron": "lfi"}, "lif"), ({"norm": "tims"}, "time"), ({"kernel": "compile"}, "compiled"), ({"steps": 0}, "steps"))
    for wrong, said in wrongs:
        with pytest.raises(UserError, match=said):
            build("digits_convnet", **wrong)
    with pytest.raises(UserError, match="did you mean 'resnet18'"):
        build("resnet81")


@pytest.mark.parametrize("name", ["if", "lif", "plif"])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_a_neuron_is_pure_and_stepping_equals_scanning(name, reset):
    neuron = neurons.Spec(name, reset=reset, threshold=0.4).make()
    x = torch.randn(6, 3, 5)
    spikes, state = neuron.scan(x)
    assert torch.equal(spikes, neuron(x)) and torch.equal(spikes, neuron(x))
    carried, parts = None, []
    for x_t in x:
        s, carried = neuron.step(x_t, carried)
        parts.append(s)
    assert torch.equal(torch.stack(parts), spikes) and torch.equal(carried, state)
    first, middle = neuron.scan(x[:2])
    assert torch.equal(torch.cat((first, neuron.scan(x[2:], middle)[0])), spikes)


def test_plif_starts_at_its_tau_and_learns_it():
    plif = neurons.PLIF(tau=4.0)
    assert [c.item() for c in plif.coefficients()] == pytest.approx([0.75, 0.25])
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(plif.scan(x)[1], neurons.LIF(tau=4.0).scan(x)[1])
    plif(x).sum().backward()
    assert plif.w.grad is not None and plif.threshold.grad is None
    with pytest.raises(UserError, match="tau must be more than 1"):
        neurons.PLIF(tau=1.0)


def test_thresholds_and_alphas_are_saved_and_learned_only_where_asked():
    lif = neurons.LIF(learn_threshold=True, learn_alpha=True)
    assert set(lif.state_dict()) == {"threshold", "alpha"}
    lif(torch.randn(4, 2, 3)).sum().backward()
    assert lif.threshold.grad is not None and lif.alpha.grad is not None
    with pytest.raises(UserError, match="no gradient by alpha"):
        neurons.LIF(surrogate="qgate", learn_alpha=True)
    with pytest.raises(UserError, match="floating-point"):
        lif(torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("memory", ["bits", "least"])
@pytest.mark.parametrize(
    ("model", "kernel"), [("small_convnet", "auto"), ("resnet9", "auto"), ("cifar_convnet", "auto"), ("small_convnet", "reference")]
)
def test_keeping_less_for_the_backward_pass_changes_nothing(model, kernel, memory):
    images = torch.randn(8, 3, 32, 32)
    outcomes = []
    for setting in ("speed", memory):
        torch.manual_seed(0)
        network = build(model, width=0.25, threshold=0.3, steps=3, memory=setting, kernel=kernel)
        for _ in range(2):  # running statistics must not be counted twice either
            with torch.autocast("cpu", torch.bfloat16):
                logits = network(images)
            logits.float().square().sum().backward()
        outcomes.append((logits.detach(), [p.grad for p in network.parameters()], list(network.buffers())))
    (logits, grads, buffers), (fewer_logits, fewer_grads, fewer_buffers) = outcomes
    assert torch.equal(logits, fewer_logits)
    for ours, theirs in zip(fewer_grads, grads, strict=True):
        assert (ours is None and theirs is None) or torch.equal(ours, theirs)
    assert all(torch.equal(a, b) for a, b in zip(buffers, fewer_buffers, strict=True))


@pytest.mark.skipif(not native.available(Rule(), torch.bfloat16), reason="no C++ compiler on this machine")
@pytest.mark.parametrize(("memory", "bytes_each"), [("speed", [2, 2]), ("bits", [2, 1 / 8]), ("least", [1 / 8])])
def test_what_is_kept_of_a_layer_is_kept_where_autograd_knows_of_it(memory, bytes_each):
    """Bytes a neuron-step, of current and spike, as hooks on saved tensors see them: what is kept elsewhere nobody would count or move."""
    block = layers.ConvBlock(64, 64, neurons.Spec("lif", threshold=0.5), spiking=True, memory=memory).to(memory_format=torch.channels_last)
    spikes = (torch.rand(24, 64, 16, 16) < 0.2).bfloat16().contiguous(memory_format=torch.channels_last).unflatten(0, (3, 8))
    kept = {}

    def pack(t):
        if t.numel() in (spikes.numel(), spikes.numel() // 8):  # neither weights nor numbers a channel
            kept[t.data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        block(spikes.requires_grad_())
    assert sorted(t.numel() * t.element_size() / spikes.numel() for t in kept.values()) == sorted(bytes_each)


def test_what_is_the_same_at_every_step_is_one_tensor_with_one_gradient():
    conv, images = nn.Conv2d(3, 5, 3, padding=1).double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    y = layers.fold(conv, images.expand(4, *images.shape))
    assert y.shape == (4, 2, 5, 6, 6) and y.stride(0) == 0 and layers.once(y) is layers.once(y)
    weights = torch.randn(4, 2, 6, 6, 5, dtype=torch.float64).movedim(4, 2)
    ((y * weights).sum() + 3 * layers.once(y).sum()).backward()
    plain = copy.deepcopy(conv)
    plain.zero_grad()
    (plain(images) * (weights.sum(0) + 3)).sum().backward()
    torch.testing.assert_close(conv.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("framed", [False, True])
def test_a_current_is_the_greatest_of_its_pieces(framed):
    spec = neurons.Spec(threshold=0.3, kernel="reference")
    block, plain = layers.ConvBlock(3, 4, spec, pool=2, pieces=3), layers.ConvBlock(3, 4, spec)
    images = torch.randn(2, 5, 3, 6, 6) if framed else torch.randn(5, 3, 6, 6).expand(2, 5, 3, 6, 6)
    with torch.no_grad():
        plain.conv = nn.Identity()  # norm and neuron of currents
        greatest = torch.stack([nn.functional.max_pool2d(block.conv(x), 2).view(5, 3, 4, 3, 3).amax(1) for x in images])
        assert torch.equal(block(images), plain(greatest)) and 0.05 < plain(greatest).mean() < 0.95


def test_a_step_seen_again_has_the_gradient_of_expand():
    """To the bit in float32, where the README prints what a network that does this ends at."""
    for dtype, same in ((torch.float32, True), (torch.bfloat16, False)):
        weights = torch.randn(4, 3, 5, 7, 9).permute(0, 1, 4, 2, 3).to(dtype)  # channels last
        grads = []
        for seen in (lambda y: layers.fold(nn.Identity(), y.expand(4, *y.shape[1:])), lambda y: y.expand(4, *y.shape[1:])):
            step = torch.randn(1, 3, 9, 5, 7).to(dtype).requires_grad_()
            (seen(step) * weights).sum().backward()
            grads.append(step.grad.float())
        assert torch.equal(*grads) or (not same and torch.allclose(*grads, rtol=2**-7, atol=2**-6))


def test_what_counts_operations_sees_every_convolution():
    """Also those that would go by Winograd or the matrix unit: the same whatever the layout of weights."""
    network = build("fast_convnet4", steps=4, norm="tebn")
    plain = count_macs(network, (3, 32, 32))
    assert plain == count_macs(network.to(memory_format=torch.channels_last), (3, 32, 32)) == 55_084_688
