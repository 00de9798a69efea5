"""Replays of CUDA graphs: what is captured and when, with a stand-in on the processor; on a GPU, that they train alike."""

import copy

import pytest
import torch
from torch import nn

from spiketrain import graphs, models
from spiketrain.cli import main
from spiketrain.objective import Objective
from spiketrain.progress import Meter
from spiketrain.recipes import Recipe
from spiketrain.train import train_step

GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
on_gpu = pytest.mark.skipif(GPU.type == "cpu", reason="no GPU")


@pytest.fixture
def captured(monkeypatch):
    """torch's function as one that computes: it warms up three times, and what it gives then reads its own inputs. Shapes captured."""
    shapes = []

    def made(module, given, allow_unused_input):
        assert allow_unused_input and not torch.is_autocast_cache_enabled()
        plain, static = module.forward, given[0]
        for _ in range(3):
            torch.autograd.grad(plain(static).sum(), [p for p in module.parameters() if p.requires_grad], allow_unused=True)
        torch.rand(3)
        shapes.append(tuple(static.shape))

        def replay(x):
            static.copy_(x)
            return plain(static)

        module.forward = replay
        return module

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", made)
    return shapes


def network(device="cpu"):
    torch.manual_seed(0)
    return models.build("digits_convnet", in_channels=1, steps=3, threshold=0.5).to(device).train()


def test_a_shape_that_comes_twice_in_a_row_is_captured(captured):
    replayed = graphs.Replayed(network(), False)
    for images in (8, 8, 8, 3, 8, 5, 5, 8, 8):
        replayed(torch.rand(images, 1, 8, 8))
    assert captured == [(8, 1, 8, 8), (5, 1, 8, 8), (8, 1, 8, 8)]


def test_evaluation_and_other_numbers_of_steps_are_not_replayed(captured):
    replayed = graphs.Replayed(network(), False)
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        replayed(x), replayed(x)
    replayed.eval()
    replayed(x), replayed(x)
    assert not captured
    replayed.train()
    replayed(x), replayed(x)
    replayed.network.steps = 5
    assert len(replayed(x)) == 5
    assert captured == [(4, 1, 8, 8)]


def steps(net, called, device="cpu", bf16=False):
    """Losses of a few steps of training, the last with fewer images."""
    recipe, objective = Recipe(name="test", data="digits", model="digits_convnet", optimizer="adamw"), Objective("ce", 0.1, 1.0, 1.0)
    optimizer, meter, losses = torch.optim.AdamW(net.parameters(), 1e-2), Meter(), []
    generator = torch.Generator().manual_seed(1)
    autocast = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16)
    for images in (16, 16, 16, 16, 7):
        x = torch.rand(images, 1, 8, 8, generator=generator).to(device)
        labels = torch.randint(10, (images,), generator=generator).to(device)
        train_step(recipe, called, optimizer, autocast, objective, x, labels, meter)
        losses.append(meter.sums()[0])
    return losses


def test_capturing_leaves_norms_and_random_numbers_as_they_were(captured):
    plain, other = network(), network()
    torch.manual_seed(3)
    wanted, drawn = steps(plain, plain), torch.rand(2)
    torch.manual_seed(3)
    assert steps(other, graphs.Replayed(other, False)) == wanted
    assert torch.equal(torch.rand(2), drawn) and captured == [(16, 1, 8, 8)]
    for name, value in plain.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_what_cannot_be_captured_is_said_in_a_line(monkeypatch):
    def refuses(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be …")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuses)
    replayed, x = graphs.Replayed(network(), False), torch.rand(4, 1, 8, 8)
    replayed(x)
    with pytest.raises(graphs.UserError, match=r"cannot be captured \(operation not permitted when stream is capturing\);"):
        replayed(x)


@pytest.mark.parametrize(("device", "processes", "accumulate", "said"), [
    ("cpu", 1, 1, "--graph is for CUDA devices, not for cpu: leave it out"),
    ("cuda", 2, 1, "--graph is for one process, not for 2: leave it out"),
    ("cuda", 1, 4, "--graph needs a batch in one part: set --accumulate 1 (it is 4)"),
])  # fmt: skip
def test_where_it_cannot_be(device, processes, accumulate, said):
    with pytest.raises(graphs.UserError) as found:
        graphs.check(torch.device(device), processes, accumulate)
    assert str(found.value) == said


def test_the_command_line_says_so_and_leaves_nothing(tmp_path, capsys):
    assert main(["train", "digits", "--graph", "--device", "cpu", "--output", str(tmp_path / "runs")]) == 2
    assert "--graph is for CUDA devices, not for cpu: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@on_gpu
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kernel", ["reference", "auto"])
def test_a_gpu_trains_alike_with_and_without(kernel, bf16):
    torch.manual_seed(0)
    plain = models.build("small_convnet", in_channels=1, steps=3, width=0.5, threshold=0.5, kernel=kernel).to(GPU).train()
    other: nn.Module = copy.deepcopy(plain)
    wanted, found = steps(plain, plain, GPU, bf16), steps(other, graphs.Replayed(other, bf16), GPU, bf16)
    assert found == pytest.approx(wanted, rel=1e-2 if bf16 else 1e-4)
    for name, value in plain.state_dict().items():
        if name.endswith("num_batches_tracked"):
            assert torch.equal(other.state_dict()[name], value), name
