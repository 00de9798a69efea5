"""A network on the test part: accuracy, loss, accuracy by number of steps, firing rates, confusion.

Where several processes share the work, each takes its batches and all return the result of the whole.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spiketrain import kernels, processes
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
            mean = kernels.mean(spikes) * spikes.shape[1]
            self.sums[name] = self.sums.get(name, torch.zeros((), device=mean.device)) + mean

        return listen

    def stop(self) -> dict[str, float]:
        """Sums over samples, by layer."""
        for handle in self.handles:
            handle.remove()
        return {name: float(total) for name, total in self.sums.items()}


@dataclass
class _Sums:
    """What one process has counted."""

    samples: int
    loss: float
    right: list[int]
    rates: dict[str, float]
    table: Tensor


def evaluate(
    network: Network,
    batches: Iterable[tuple[Tensor, Tensor]],
    autocast: torch.autocast,
    classes: int,
    stopping: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Every sample once, one view, in evaluation mode; the network's mode is what it was afterwards.

    `batches` are this process's; when `stopping()` becomes true the rest is left out, and the result means nothing.
    """
    training = network.training
    network.eval()
    rates = _Rates(network)
    loss_of = Objective()
    mine = _Sums(0, 0.0, [], {}, torch.zeros(classes, classes, dtype=torch.long))
    with torch.no_grad():
        for inputs, labels in batches:
            with autocast:
                logits = network(inputs).float()
            steps = torch.arange(1, len(logits) + 1, device=logits.device).view(-1, 1, 1)
            partial = (logits.cumsum(0) / steps).argmax(-1)  # [T,B]
            hits = (partial == labels).sum(1).tolist()
            mine.right = [a + b for a, b in zip(mine.right or [0] * len(hits), hits, strict=True)]
            mine.loss += float(loss_of(logits, labels)) * len(labels)
            mine.table += confusion(predict(logits), labels, classes).cpu()
            mine.samples += len(labels)
            if stopping():
                break
    network.train(training)
    mine.rates = rates.stop()
    return _whole([found for found in processes.gather(mine) if found.samples])


def _whole(parts: list[_Sums]) -> Evaluation:
    samples = sum(p.samples for p in parts)
    table = torch.stack([p.table for p in parts]).sum(0)
    by_step = [round(100 * sum(right) / samples, 4) for right in zip(*(p.right for p in parts), strict=True)]
    rates = {name: round(sum(p.rates[name] for p in parts) / samples, 6) for name in parts[0].rates}
    accuracy = round(100 * int(table.diagonal().sum()) / samples, 4)
    return Evaluation(accuracy, sum(p.loss for p in parts) / samples, by_step, rates, table.tolist())
