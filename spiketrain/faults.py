"""What goes wrong inside a network: the first layer whose output is not finite, and layers that have fallen silent."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from spiketrain import processes
from spiketrain.functional import wide


class Finite:
    """Whether all of some tensors are finite, asked for without making the device wait: the answer is copied while it works on.

    On the processor, whose maxima run at a fifteenth of the rate, whether their sums are: a sum that is too large for its dtype counts as
    infinite.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        given = list(tensors)
        if given and all(t.is_cpu for t in given):
            finite = torch.stack([t.sum(dtype=wide(t.dtype)) for t in given]).sum().isfinite()
        else:
            finite = torch.nn.utils.get_total_norm(given, math.inf).isfinite()
        self.answer = finite.to("cpu", non_blocking=True)
        self.copied = torch.cuda.Event() if finite.is_cuda else None
        if self.copied:
            self.copied.record()

    def __bool__(self) -> bool:
        if self.copied:
            self.copied.synchronize()
        return bool(self.answer)


def statistics(network: nn.Module) -> list[Tensor]:
    """The running statistics of norms: what is not finite anywhere in a forward pass is in them, even where a neuron hides it
    from the loss (it does not fire at NaN)."""
    return [b for b in network.buffers() if b.is_floating_point()]


def first_not_finite(network: nn.Module, inputs: Tensor, autocast: torch.autocast) -> str:
    """The name of the first module whose output is not finite in a forward pass; "the input"; "the loss or its gradient" where
    all are finite.

    The pass is in the mode that the network is in, so it changes the statistics of norms. All processes must call it together.
    """
    found: list[str] = [] if bool(inputs.isfinite().all()) else ["the input"]

    def listener(name: str):  # type: ignore[no-untyped-def]
        def listen(_: nn.Module, __: object, output: object) -> None:
            if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(f"layer {name}")

        return listen

    names = [(name.removeprefix("body."), module) for name, module in network.named_modules() if name]
    handles = [module.register_forward_hook(listener(name)) for name, module in names]
    try:
        with torch.no_grad(), autocast:
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    order = {"the input": -1} | {f"layer {name}": i for i, (name, _) in enumerate(names)}
    first = [names[0] for names in processes.gather(found) if names]
    return min(first, key=lambda name: order[name]) if first else "the loss or its gradient"


def first_bad_weights(network: nn.Module) -> str:
    """The name of the first parameter or buffer that is not finite, or ""."""
    tensors = network.state_dict()
    floating = {name: t for name, t in tensors.items() if t.is_floating_point()}
    if bool(torch.stack([t.isfinite().all() for t in floating.values()]).all()):
        return ""
    return next(name.removeprefix("body.") for name, t in floating.items() if not bool(t.isfinite().all()))


def silent(rates: Mapping[str, float]) -> list[str]:
    """The layers in which no neuron fired."""
    return [name for name, rate in rates.items() if rate == 0]
