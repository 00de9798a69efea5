"""A network on the test part: accuracy, loss, accuracy by number of steps, firing rates, confusion."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spiketrain.models import Network
from spiketrain.neurons import Neuron
from spiketrain.objective import Objective, confusion, predict


@dataclass(frozen=True)
class Evaluation:
    """accuracy: percent; loss: plain cross entropy; by_step: percent with the first 1 … T steps; rates: spikes per neuron and step."""

    accuracy: float
    loss: float
    by_step: list[float]
    rates: dict[str, float]
    confusion: list[list[int]]


class _Rates:
    """Means of the outputs of all neurons of a network, by the neuron's name, while it is listened to."""

    def __init__(self, network: nn.Module) -> None:
        self.sums: dict[str, Tensor] = {}
        self.batches = 0
        self.handles = [
            m.register_forward_hook(self._listener(name.removeprefix("body.").removesuffix(".neuron")))
            for name, m in network.named_modules()
            if isinstance(m, Neuron)
        ]

    def _listener(self, name: str):  # type: ignore[no-untyped-def]
        def listen(_: nn.Module, __: object, spikes: Tensor) -> None:
            mean = spikes.float().mean() * spikes.shape[1]
            self.sums[name] = self.sums.get(name, torch.zeros((), device=mean.device)) + mean

        return listen

    def stop(self, samples: int) -> dict[str, float]:
        for handle in self.handles:
            handle.remove()
        return {name: round(float(total) / samples, 6) for name, total in self.sums.items()}


def evaluate(network: Network, batches: Iterable[tuple[Tensor, Tensor]], autocast: torch.autocast, classes: int) -> Evaluation:
    """Every sample once, one view, in evaluation mode; the network's mode is what it was afterwards."""
    training = network.training
    network.eval()
    rates = _Rates(network)
    loss_of = Objective()
    samples, loss = 0, 0.0
    table, right = torch.zeros(classes, classes, dtype=torch.long), torch.zeros(0)
    with torch.no_grad():
        for inputs, labels in batches:
            with autocast:
                logits = network(inputs).float()
            steps = torch.arange(1, len(logits) + 1, device=logits.device).view(-1, 1, 1)
            partial = (logits.cumsum(0) / steps).argmax(-1)  # [T,B]
            hits = (partial == labels).sum(1).cpu()
            right = hits if not samples else right + hits
            loss += float(loss_of(logits, labels)) * len(labels)
            table += confusion(predict(logits), labels, classes).cpu()
            samples += len(labels)
    network.train(training)
    by_step = [round(100 * int(r) / samples, 4) for r in right]
    accuracy = round(100 * int(table.diagonal().sum()) / samples, 4)
    return Evaluation(accuracy, loss / samples, by_step, rates.stop(samples), table.tolist())
