"""Torch's fused optimisers on the processor, for weights that are channels last."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Optimisers of torch that update a weight in one pass over memory, not in a dozen, if told so."""


def in_order_of_memory(optimizer: Optimizer) -> Optimizer:
    """Lets a fused Adam or AdamW see weights that are channels last as what they are in memory, dense `[K,H,W,C]`; returns it.

    Torch (2.14) else copies each of them into the order `[K,C,H,W]`, and weight and state back: twice the time, and the memory of the
    largest weight. A gradient that lies otherwise than its weight, which torch takes for what it is not, is put into its order. SGD is
    left as it is: it keeps the tensors that it sees.
    """
    lists: Callable[..., Any] | None = getattr(optimizer, "_init_group", None)  # not of torch's interface: without it all is as it was
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and lists is not None:

        def seen(group: dict[str, Any], weights: list[Tensor], grads: list[Tensor], *state: list[Tensor]) -> Any:
            found = lists(group, weights, grads, *state)
            for i, weight in enumerate(weights):
                if weight.device.type == "cpu" and _is_last(weight):
                    for there in (weights, grads, *(s for s in state if i < len(s) and s[i].dim() == 4)):
                        there[i] = there[i].permute(0, 2, 3, 1)
                    grads[i] = grads[i].contiguous()
            return found

        optimizer._init_group = seen  # type: ignore[method-assign]
    return optimizer


def _is_last(x: Tensor) -> bool:
    """Channels last, and not in torch's order as well."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
