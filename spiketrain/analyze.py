"""What a trained network does inside: spikes, potentials, operations, accuracy over time and under damage, features."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spiketrain import corrupt, functional, operations
from spiketrain.evaluate import evaluate
from spiketrain.neurons import Leaky, Neuron
from spiketrain.objective import predict
from spiketrain.record import write_whole
from spiketrain.trained import Trained

FILE = "analysis.json"
BINS = 40
SPAN = (-4.0, 4.0)
"""Range of the histogram of potentials, in thresholds."""


def analyze(trained: Trained, samples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The analysis of a trained network on the first `samples` test samples (of a class-balanced order; 0: all), as JSON has it.

    layers: per neuron layer firing rate by step, shares of silent neurons (never fire) and saturated ones (fire at every step), and a
    histogram of u / threshold over `span`; operations: per linear layer, see `operations`; accuracy_by_steps: with 1 … 2T steps (1 … T
    where the data are frames, whose number is fixed); robustness: accuracy under damage (`corrupt`); confusion; features: t-SNE of
    what enters the last layer, mean over time.
    """
    chosen = _chosen(trained, samples)
    inputs, labels = trained.data.test.take(chosen), trained.data.test.labels[chosen]
    layers, counted, features = _listen(trained, inputs)
    updates = sum(layer["neurons"] * len(layer["rate_by_step"]) for layer in layers)
    by_steps, table = _accuracies(trained, inputs, labels)
    return {
        "recipe": trained.recipe.name, "seed": trained.recipe.seed, "weights": trained.record.weights, "samples": len(labels),
        "steps": trained.recipe.steps, "layers": layers, "span": list(SPAN),
        "operations": {"layers": counted, "totals": operations.totals(counted, updates)}, "caveat": operations.CAVEAT,
        "accuracy": by_steps[trained.recipe.steps - 1], "accuracy_by_steps": by_steps,
        "robustness": list(_robustness(trained, inputs, labels, seed)), "confusion": table, "classes": list(trained.data.classes),
        "features": _tsne(features, labels, seed),
    }  # fmt: skip


def save(analysis: dict[str, Any], folder: Path) -> Path:
    """Writes `folder/analysis.json`; returns its path."""
    write_whole(folder / FILE, json.dumps(analysis, ensure_ascii=False).encode() + b"\n")
    return folder / FILE


def _chosen(trained: Trained, samples: int) -> Tensor:
    """Indices of test samples, class after class in turn, so that few of them still have every class."""
    labels = trained.data.test.labels
    rank = torch.zeros_like(labels)
    for k in labels.unique():
        rank[labels == k] = torch.arange(int((labels == k).sum()))
    order = torch.argsort(rank * (int(labels.max()) + 1) + labels)
    return order[: samples or None].sort().values


def _batches(trained: Trained, inputs: Tensor) -> Iterator[Tensor]:
    for part in inputs.split(min(trained.recipe.eval_batch_size, 100)):
        yield trained.loader.prepare.plain(part.to(trained.device))


class _Activity:
    """Sums over batches of what one neuron layer does."""

    def __init__(self, neuron: Neuron) -> None:
        self.neuron = neuron
        self.spikes: Tensor | None = None  # [T,C,H,W], summed over samples
        self.samples = 0
        self.potentials = torch.zeros(BINS)

    def add(self, x: Tensor, s: Tensor) -> None:
        """Currents x and spikes s, both `[T,B,...]`, of a batch."""
        total = s.float().sum(1)
        self.spikes = total if self.spikes is None else self.spikes + total
        self.samples += s.shape[1]
        if isinstance(self.neuron, Leaky):
            self.potentials += _histogram(self.neuron, x.float())

    def row(self, name: str) -> dict[str, Any]:
        """The layer's numbers as JSON has them."""
        assert self.spikes is not None
        neurons = self.spikes.flatten(1).shape[1]
        fired, most = self.spikes.sum(0), self.samples * len(self.spikes)
        total = float(self.potentials.sum())
        return {
            "name": name, "neurons": neurons,
            "rate_by_step": [round(float(s.mean()) / self.samples, 6) for s in self.spikes],
            "rate": round(float(self.spikes.mean()) / self.samples, 6),
            "silent": round(float((fired == 0).float().mean()), 6), "saturated": round(float((fired >= most).float().mean()), 6),
            "potentials": [round(float(n) / total, 6) for n in self.potentials] if total else [],
        }  # fmt: skip


def _histogram(neuron: Leaky, x: Tensor) -> Tensor:
    """Counts of u / threshold in `BINS` bins over `SPAN`, the outermost bins taking what lies beyond."""
    v, counts = None, torch.zeros(BINS)
    decay, gain = neuron.coefficients()
    for x_t in x.unbind(0):
        u = gain * x_t if v is None else decay * v + gain * x_t
        counts += torch.histc((u / neuron.threshold).clamp(SPAN[0], SPAN[1]).flatten().cpu(), BINS, *SPAN)
        _, v = neuron.step(x_t, v)
    return counts


def _listen(trained: Trained, inputs: Tensor) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Tensor]:
    """Rows of neuron layers and of linear layers, and the features `[N,D]`."""
    network = trained.network
    found = {n.removeprefix("body.").removesuffix(".neuron"): _Activity(m) for n, m in network.named_modules() if isinstance(m, Neuron)}
    features: list[Tensor] = []
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]

    def activity(one: _Activity):  # type: ignore[no-untyped-def]
        return lambda _, given, spikes: one.add(_currents(*given), spikes)

    handles = [one.neuron.register_forward_hook(activity(one)) for one in found.values()]
    handles.append(last.register_forward_hook(lambda _, given, out: features.append(given[0].float())))
    counter = operations.Counter(network)
    try:
        with torch.no_grad(), counter:
            for x in _batches(trained, inputs):
                counter.batch = x.shape[1] if x.dim() == 5 else len(x)
                with trained.autocast():
                    network(x)
                features[-1] = features[-1].unflatten(0, (-1, counter.batch)).mean(0).cpu()
    finally:
        for handle in handles:
            handle.remove()
    return [one.row(name) for name, one in found.items()], counter.rows(), torch.cat(features)


def _currents(x: Tensor, affine: tuple[Tensor, Tensor] | None = None, steps: int = 1) -> Tensor:
    """What a neuron was given, behind the norm that it was given with it."""
    if affine is None:
        return x
    y = functional.affine(x, *(c[None] for c in affine))
    return y.expand(steps, *y.shape[1:]) if len(y) == 1 else y


def _accuracies(trained: Trained, inputs: Tensor, labels: Tensor) -> tuple[list[float], list[list[int]]]:
    """Accuracy with the first 1, 2, … steps, up to 2T where they are not frames and the network takes more; the confusion matrix at T."""
    network, steps = trained.network, trained.recipe.steps
    classes = len(trained.data.classes)
    batches = lambda: zip(_batches(trained, inputs), labels.split(min(trained.recipe.eval_batch_size, 100)), strict=True)  # noqa: E731
    result = evaluate(network, batches(), trained.autocast(), max(classes, trained.recipe.classes))
    fixed = trained.recipe.flatten_time or trained.recipe.norm == "tebn"
    if trained.data.test.framed or fixed or trained.recipe.encoder != "direct":
        return result.by_step, result.confusion
    network.steps = 2 * steps  # an image may be shown longer: a longer run begins with the shorter one
    try:
        longer = evaluate(network, batches(), trained.autocast(), max(classes, trained.recipe.classes))
    finally:
        network.steps = steps
    return longer.by_step, result.confusion


def _robustness(trained: Trained, inputs: Tensor, labels: Tensor, seed: int) -> Iterator[dict[str, Any]]:
    for kind, (damage, levels) in (corrupt.EVENTS if trained.data.test.framed else corrupt.IMAGES).items():
        for level in levels:
            generator = torch.Generator().manual_seed(seed)
            right = 0
            with torch.no_grad():
                done = 0
                for x in _batches(trained, damage(inputs, level, generator)):
                    with trained.autocast():
                        found = predict(trained.network(x).float())
                    right += int((found.cpu() == labels[done : done + len(found)]).sum())
                    done += len(found)
            yield {"kind": kind, "level": level, "accuracy": round(100 * right / len(labels), 4)}


def _tsne(features: Tensor, labels: Tensor, seed: int, most: int = 600) -> dict[str, Any]:
    """Two coordinates a sample (van der Maaten & Hinton 2008), of at most `most` samples; none where fewer than ten differ."""
    from sklearn.manifold import TSNE  # type: ignore[import-untyped]

    chosen = features[:: max(1, -(-len(features) // most))]
    if len(chosen.unique(dim=0)) < 10 or not chosen.isfinite().all():  # a dead network: scikit-learn crashes on equal samples
        return {}
    perplexity = min(30.0, (len(chosen) - 1) / 3)
    places = TSNE(2, perplexity=perplexity, random_state=seed, init="pca").fit_transform(chosen.double().numpy())
    kept = labels[:: max(1, -(-len(features) // most))]
    return {"x": [round(float(a), 3) for a in places[:, 0]], "y": [round(float(b), 3) for b in places[:, 1]], "label": kept.tolist()}


__all__ = ["BINS", "FILE", "SPAN", "analyze", "save"]
