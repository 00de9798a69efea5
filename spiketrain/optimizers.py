"""Optimisers on the processor, for weights that are channels last: torch's fused ones, and timm's Muon."""

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import Muon
from torch import Tensor
from torch.optim import Optimizer

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Optimisers of torch that update a weight in one pass over memory, not in a dozen, if told so."""


def in_order_of_memory(optimizer: Optimizer) -> Optimizer:
    """Lets a fused Adam or AdamW, or Muon, see weights that are channels last as what they are in memory, dense `[K,H,W,C]`; returns it.

    Torch (2.14) else copies each of them into the order `[K,C,H,W]`, and weight and state back: twice the time, and the memory of the
    largest weight. A gradient that lies otherwise than its weight, which torch takes for what it is not, is put into its order. SGD is
    left as it is: it keeps the tensors that it sees.

    Muon makes the gradient, a matrix `[K,CHW]`, orthogonal: in whatever order its columns are, the result is the same in that order, and
    `[K,HWC]` need not be copied.
    """
    if isinstance(optimizer, Muon):
        _turned_in_a_step(optimizer)
        return optimizer
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


def _turned_in_a_step(optimizer: Optimizer) -> None:
    """Weights, their gradients and their state are `[K,H,W,C]` while a step is made."""
    turned: list[Tensor] = []

    def turn(weight: Tensor, *order: int) -> None:
        grad, state = weight.grad, optimizer.state[weight]
        assert grad is not None
        weight.data = weight.data.permute(order)
        weight.grad = grad.permute(order)
        state |= {name: s.permute(order) for name, s in state.items() if isinstance(s, Tensor) and s.dim() == 4}

    def before(*_: Any) -> None:
        # as a matrix, not tap by tap; and Muon takes no weight whose second side is 1
        flat = [weight for group in optimizer.param_groups if group["conv_mode"] == "flatten" for weight in group["params"]]
        turned[:] = [w for w in flat if w.grad is not None and w.is_cpu and _is_last(w) and w.shape[2] > 1]
        for weight in turned:
            turn(weight, 0, 2, 3, 1)

    def after(*_: Any) -> None:
        for weight in turned:
            turn(weight, 0, 3, 1, 2)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _is_last(x: Tensor) -> bool:
    """Channels last, and not in torch's order as well."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
