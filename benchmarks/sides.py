"""Who takes part: one network built by us and by the peers, and a training step of each."""

from collections.abc import Callable
from dataclasses import dataclass

import networks
import peers
import torch
import torch.nn.functional as F
from common import device
from networks import NETWORKS, Network, Parts
from torch import Tensor, nn

from spiketrain import assemble, graphs, models, recipes
from spiketrain.functional import widen
from spiketrain.models.convnet import averaging
from spiketrain.optimizers import in_order_of_memory
from spiketrain.recipes import Recipe

NHWC, NCHW = torch.channels_last, torch.contiguous_format
models.MODELS["three_convnet"] = lambda plan: averaging(NETWORKS["three_convnet"].stages, plan)


@dataclass(frozen=True)
class Side:
    """A way to train the network: its name, its library (empty: none but torch), how it is built for T steps, precision, layout.

    `times`: by how much the batch is multiplied (an ANN's batch of T·B).
    """

    name: str
    library: str
    build: Callable[[Network, int], nn.Module]
    bf16: bool
    layout: torch.memory_format = NHWC
    times: int = 1

    @property
    def label(self) -> str:
        """Name, precision and layout."""
        return f"{self.name}, {'bf16' if self.bf16 else 'fp32'} {'NHWC' if self.layout == NHWC else 'NCHW'}"


def recipe(network: Network, steps: int, **changes: object) -> Recipe:
    """Our recipe of a network with the neuron that everyone has here."""
    base = recipes.Recipe(name="benchmark", model=network.name, steps=steps, neuron="lif", tau=2.0, threshold=1.0, surrogate="atan",
                          alpha=2.0, reset="hard", detach=True, norm="time")  # fmt: skip
    return base.but(**changes)


def ours(**changes: object) -> Callable[[Network, int], nn.Module]:
    """Builds our network by the recipe with these changes."""
    return lambda network, steps: assemble.network_from(recipe(network, steps, **changes), network.sample[0], networks.CLASSES)


def replayed(network: Network, steps: int) -> nn.Module:
    """Ours in bfloat16 as CUDA graphs (`train --graph`)."""
    return graphs.Replayed(ours()(network, steps), True)  # type: ignore[arg-type]


def spikingjelly(layout: torch.memory_format, compiled: bool = False, whole: bool = False) -> Callable[[Network, int], nn.Module]:
    """Builds SpikingJelly's network; compiled: its neurons; whole: the network."""

    def build(network: Network, steps: int) -> nn.Module:
        parts = peers.spikingjelly_parts(peers.SpikingJellyCompiled) if compiled or whole else peers.spikingjelly_parts()
        body = network.build(parts)
        return peers.Sequence(torch.compile(body) if whole else body, steps, peers.spikingjelly_reset, layout)

    return build


def spikingjelly_saving(network: Network, steps: int) -> nn.Module:
    """SpikingJelly's network with its neurons checkpointed and their binary inputs packed, as its `optimize_memory` does at level 1."""
    from spikingjelly.activation_based import memopt, neuron

    built = spikingjelly(NHWC)(network, steps)
    x = network.inputs(2, steps, torch.device("cpu"))[0]
    memopt.optimize_memory(built, neuron.LIFNode, lambda module: module(x), level=1)
    return built


def snntorch(network: Network, steps: int) -> nn.Module:
    """snnTorch's network, looped over time."""
    return peers.Looped(network.build(Parts(peers.snntorch_leaky)), steps, peers.snntorch_reset)


def looped(network: Network, steps: int) -> nn.Module:
    """The older benchmark's way: the whole network at every step, statistics of batch norm per step."""
    return peers.Looped(network.build(peers.LOOPED), steps, peers.looped_reset)


class _OneStep(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)[None]


def ann(network: Network, steps: int) -> nn.Module:
    """The same network with ReLU, without time."""
    return _OneStep(network.build(Parts()))


def sides(steps: int, whole: bool = False) -> list[Side]:
    """Everyone whose library is here, ours first."""
    everyone = [
        *(Side("ours", "", ours(), bf16) for bf16 in (True, False)),
        *([Side("ours, CUDA graphs", "", replayed, True)] if device().type == "cuda" else []),
        *(Side("ours, reference kernel", "", ours(kernel="reference"), bf16) for bf16 in (True, False)),
        Side("SpikingJelly, default", "spikingjelly", spikingjelly(NCHW), False, NCHW),
        Side("SpikingJelly, neurons compiled", "spikingjelly", spikingjelly(NHWC, True), False),
        Side("SpikingJelly, eager", "spikingjelly", spikingjelly(NHWC), True),
        Side("SpikingJelly, neurons compiled", "spikingjelly", spikingjelly(NHWC, True), True),
        Side("SpikingJelly, neurons compiled", "spikingjelly", spikingjelly(NCHW, True), True, NCHW),
        *([Side("SpikingJelly, whole compiled", "spikingjelly", spikingjelly(NHWC, whole=True), True)] if whole else []),
        Side("snnTorch", "snntorch", snntorch, False, NCHW),
        Side("looped over time", "", looped, False, NCHW),
        *(Side("ANN, batch B", "", ann, bf16) for bf16 in (True, False)),
        *(Side("ANN, batch T·B", "", ann, bf16, times=steps) for bf16 in (True, False)),
    ]
    return [side for side in everyone if not side.library or side.library in peers.found()]


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained, in order."""
    return [p for p in network.parameters() if p.requires_grad]


def same_weights(source: nn.Module, target: nn.Module) -> None:
    """Gives target the weights of source; an AssertionError where they are not the same network."""
    a, b = trainable(source), trainable(target)
    assert [p.shape for p in a] == [p.shape for p in b], "not the same network"
    with torch.no_grad():
        for p, q in zip(a, b, strict=True):
            q.copy_(p)


class Step:
    """A training step of a side: forward, loss, backward, fused AdamW. Call it, or take `loss()` alone."""

    def __init__(self, side: Side, network: Network, steps: int, batch: int, weights: nn.Module) -> None:
        self.side, self.images = side, batch * side.times
        self.module = side.build(network, steps).to(device()).train()
        same_weights(weights, self.module)
        self.module.to(memory_format=side.layout)
        x, self.labels = network.inputs(batch, steps, device())
        if side.build is ann and network.events:
            x = x[0]
        if side.times > 1:
            x, self.labels = x.repeat(side.times, 1, 1, 1), self.labels.repeat(side.times)
        flat = x.view(-1, *x.shape[-3:]).contiguous(memory_format=side.layout)
        self.x = flat.unflatten(0, x.shape[:-3])
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(trainable(self.module), lr=1e-4, weight_decay=0.01, fused=True)
        if side.name.startswith("ours"):
            in_order_of_memory(self.optimizer)

    def loss(self) -> Tensor:
        """Cross-entropy of the mean of the logits over time."""
        with torch.autocast(device().type, torch.bfloat16, enabled=self.side.bf16):
            logits = self.module(self.x)
        return F.cross_entropy(widen(logits).mean(0), self.labels)

    def gradients(self) -> tuple[float, Tensor]:
        """The loss, and the gradients by all weights in one vector of float64."""
        loss = self.loss()
        found = torch.autograd.grad(loss, trainable(self.module))
        return loss.item(), torch.cat([g.flatten().double() for g in found])

    def double(self) -> "Step":
        """In float64, where a rounding does not change a spike."""
        self.module.double()
        self.x = self.x.double()
        return self

    def __call__(self) -> None:
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
