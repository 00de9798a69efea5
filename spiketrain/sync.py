"""Batch norm whose mean and variance are those of all processes' rows together."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spiketrain import processes
from spiketrain.functional import Moments, once_differentiable, together


class _Sum(torch.autograd.Function):
    """Σ over processes; its gradient is the Σ of the gradients, as every process's result depends on every process's values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return processes.add_up(values.clone())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return processes.add_up(grad.clone())


def total(values: Tensor) -> Tensor:
    """The sum of a tensor over all processes; differentiable."""
    summed: Tensor = _Sum.apply(values.contiguous())
    return summed


def batch_norm(x: Tensor, running: tuple[Tensor, Tensor], weight: Tensor, bias: Tensor, momentum: float, eps: float) -> Tensor:
    """`F.batch_norm` in training of x `[B,C,...]`, with the statistics of all processes; updates the running mean and variance.

    The backward pass adds up Σ dy and Σ dy·x̂ over processes: two all-reduces a layer and step. Works on any device and backend.
    """
    y: Tensor = _BatchNorm.apply(x, weight, bias, *running, momentum, eps)
    return y


class _BatchNorm(torch.autograd.Function):
    """Local sums and the normalisation by torch's own kernels; what is ours are the two all-reduces between them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float
    ) -> Tensor:
        count = x.numel() // x.shape[1]
        precision = torch.zeros_like(running_mean)  # the statistics come in that of the running ones, and else in x's
        local, spread = torch.batch_norm_update_stats(x, precision, precision, 0.0)
        found = together(Moments(local.double()[None], spread.double()[None], count), total)
        mean, var, n = found.mean[0], found.var[0], found.count
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * (n / (n - 1))).to(running_var.dtype), momentum)
        mean, var = mean.to(weight.dtype), var.to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps, ctx.count = eps, n
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var = ctx.saved_tensors
        # as in evaluation: dx = dy·w/σ, and this process's Σ dy·x̂ and Σ dy
        dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = processes.add_up(torch.stack((d_weight, d_bias)).double()) / ctx.count
        scale = 1 / (var + ctx.eps).sqrt()
        by_x = -weight * scale.square() * sums[0]
        constant = -weight * scale * sums[1] - by_x * mean
        shape = (-1, *(1,) * (x.dim() - 2))
        dx.addcmul_(x, by_x.to(dx.dtype).view(shape)).add_(constant.to(dx.dtype).view(shape))
        return dx, d_weight, d_bias, None, None, None, None
