"""Optimisers on the processor: torch's fused ones and timm's Muon for weights that are channels last, and Muon's products."""

from collections.abc import Callable
from typing import Any

import torch
from timm.optim import Muon
from timm.optim.muon import get_lr_scale
from torch import Tensor
from torch.optim import Optimizer

from spiketrain.kernels import muon

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
"""Optimisers of torch that update a weight in one pass over memory, not in a dozen, if told so."""

QUINTIC = (
    (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037), (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012),
)  # fmt: skip
"""Muon's coefficients a, b and c of each iteration, by which timm goes unless told otherwise; the last ones are those of all further ones.

Source: Franz Louis Cesista, You Jiacheng, Keller Jordan, "Squeezing 1-2% Efficiency Gains Out of Muon by Optimizing the Newton-Schulz
Coefficients" (2025).
"""


def quick(optimizer: Optimizer) -> Optimizer:
    """Makes an optimiser's steps on the processor as fast as they can be, here; returns it."""
    if isinstance(optimizer, Muon) and muon.ready():
        _by_the_unit(optimizer)
    return in_order_of_memory(optimizer)


def _by_the_unit(optimizer: Muon) -> None:
    """Muon's step of a weight is made by `kernels.muon`, and timm's is not told of it; the first one, which makes its state, is timm's."""
    taken: list[tuple[Tensor, Tensor, dict[str, Any]]] = []

    def before(*_: Any) -> None:
        taken[:] = [
            (weight, weight.grad, group)
            for group in optimizer.param_groups
            if group["ns_coefficients"] == "quintic" and group["conv_mode"] == "flatten"
            if group["ns_steps"] > 0 and not group.get("scale_eps") and not group.get("capturable")
            for weight in group["params"]
            if weight.is_cpu and weight.dtype is torch.float32 and weight.grad is not None
            if optimizer.state[weight].keys() == {"use_muon", "momentum_buffer"}
        ]
        for weight, grad, group in taken:
            _make_a_step(weight, grad, optimizer.state[weight], group)
            weight.grad = None

    def after(*_: Any) -> None:
        for weight, grad, _group in taken:
            weight.grad = grad
        taken.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def _make_a_step(weight: Tensor, grad: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
    """Muon's, with what timm has for it in a weight's state and group. What lies otherwise than the weight is put into its order."""
    last = _is_last(weight)
    dense = weight.detach() if last or weight.is_contiguous() else weight.detach().contiguous()
    if state["momentum_buffer"].stride() != dense.stride():
        state["momentum_buffer"] = torch.empty_like(dense).copy_(state["momentum_buffer"])
    if grad.stride() != dense.stride() or grad.dtype is not dense.dtype:
        grad = torch.empty_like(dense).copy_(grad)
    in_memory = [x.permute(0, 2, 3, 1) if last else x for x in (dense, grad, state["momentum_buffer"])]
    times, lr = int(group["ns_steps"]), float(group["lr"])
    matrix = torch.Size((weight.shape[0], weight.numel() // weight.shape[0]))
    muon.step(
        *in_memory, momentum=group["momentum"], nesterov=group["nesterov"], safety=group["safety_factor"], eps=group["eps"],
        coefficients=[*QUINTIC, *QUINTIC[-1:] * times][:times], decay=1 - lr * group["weight_decay"],
        rate=lr * (get_lr_scale(matrix, group["adjust_lr_fn"]) if group["adjust_lr_fn"] else 1.0),
    )  # fmt: skip
    if dense.data_ptr() != weight.data_ptr():
        weight.detach().copy_(dense)
    torch.autograd.graph.increment_version(weight)  # it was written behind torch's back


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
