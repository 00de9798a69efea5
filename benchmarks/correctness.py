"""What is held before a network is timed: loss and gradients against the reference kernel and against peers of the same equation.

In float64 no rounding changes a spike, so everything must agree closely. In the precision that is timed a spike that flips by
rounding changes all that comes after it, the more so the deeper the network: there a fast kernel must be about as near to float64
as the reference kernel is. (`kernel.py` holds a single layer spike by spike in every precision.)
"""

from collections.abc import Callable, Sequence
from typing import Any

import peers
import torch
from common import Gate
from networks import Network
from sides import NCHW, NHWC, Side, Step, looped, ours, spikingjelly
from torch import Tensor, nn

BATCH = 2
CLOSE = 1e-6
"""Of loss and gradients in float64, relative."""
WORSE, FLIP = 1.5, 0.05
"""A fast kernel's gradients may be WORSE times as far from float64 as the reference kernel's in the same precision, or FLIP, relative."""

Build = Callable[[Network, int], nn.Module]


def distance(a: Tensor, b: Tensor) -> float:
    """Norm of the difference, relative to that of b."""
    return float((a - b).norm() / b.norm())


class Held:
    """A network and its weights at T steps, and the reference's loss and gradients in float64."""

    def __init__(self, gate: Gate, network: Network, steps: int, weights: nn.Module) -> None:
        self.gate, self.network, self.steps, self.weights = gate, network, steps, weights
        self.reference = self.double(ours(kernel="reference"))

    def double(self, build: Build) -> tuple[float, Tensor]:
        """Loss and gradients in float64."""
        return Step(Side("", "", build, False, NCHW), self.network, self.steps, BATCH, self.weights).double().gradients()

    def rounded(self, build: Build, precision: str) -> float:
        """How far the gradients in this precision are from the reference in float64."""
        step = Step(Side("", "", build, precision == "bf16", NHWC), self.network, self.steps, BATCH, self.weights)
        return distance(step.gradients()[1], self.reference[1])

    def exact(self, name: str, build: Build, wanted: tuple[float, Tensor] | None = None) -> None:
        """Checks loss and gradients in float64."""
        (loss, gradients), (right, by) = self.double(build), wanted or self.reference
        what = f"{name}, {self.network.name}, T={self.steps}, float64"
        self.gate.check(f"{what}: loss", abs(loss - right) / right, CLOSE)
        self.gate.check(f"{what}: gradients", distance(gradients, by), CLOSE)


def hold(
    gate: Gate, network: Network, steps: int, weights: nn.Module, precisions: Sequence[str], settings: Sequence[dict[str, Any]]
) -> None:
    """Checks ours by each of these settings of a recipe, then the peers of the same equation."""
    held = Held(gate, network, steps, weights)
    bounds = {p: max(FLIP, WORSE * held.rounded(ours(kernel="reference"), p)) for p in precisions}
    for changes in settings:
        name = "ours, " + " ".join(f"{k}={v}" for k, v in changes.items())
        held.exact(name, ours(**changes))
        for precision, most in bounds.items():
            gate.check(f"{name}, {network.name}, {precision}: gradients", held.rounded(ours(**changes), precision), most)
    if "spikingjelly" in peers.found():
        held.exact("SpikingJelly", spikingjelly(NCHW))
    held.exact("looped over time", looped, held.double(ours(kernel="reference", norm="step")))


def fresh_weights(network: Network, steps: int, device: torch.device) -> nn.Module:
    """Our network, freshly initialised: everyone gets its weights."""
    torch.manual_seed(0)
    return ours()(network, steps).to(device)
