"""The equations: surrogate slopes, and one step and one scan of the leaky family. Plain torch, nothing fast.

Everything fast (`spiketrain.kernels`) is a twin of a function here and is held to it by a test.

The recurrence (IF, LIF and PLIF are the same one with other coefficients; time is axis 0):

    u[t] = decay·v[t−1] + gain·x[t]                  potential before the reset
    s[t] = H(u[t] − threshold)                       spike; H(0) = 1, or 0 where `Rule.strict`
    v[t] = u[t]·(1 − s[t])          reset="hard"     potential after the reset, to zero
    v[t] = u[t] − threshold·s[t]    reset="soft"     or by subtraction

In the backward pass the derivative of H is replaced by a surrogate slope g(u − threshold, alpha). With `Rule.detach` the
spike inside the reset is a constant, so no gradient passes through the reset. Without `Rule.through_time` v[t−1] is a constant too
(spatial learning through time, SLTT: Meng et al., ICCV 2023): the gradient of a step goes to the inputs of that step alone. The state
is float32 (float64 where the input is) whatever the input's dtype: in bfloat16 about one spike in a hundred would change.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from spiketrain.errors import UserError, unknown

Coefficient = float | Tensor
"""A number, a tensor of no axes, or one value a channel `[C]` (channels are axis 1 of a step `[B,C,...]`)."""


@dataclass(frozen=True)
class Surrogate:
    """A stand-in for the derivative of the Heaviside step.

    `slope(x, alpha)` is g(x), x = u − threshold. `alpha` is the steepness used where none is given. `alpha_slope(x, alpha)`
    is the derivative by alpha of the primitive of g; where it is None, alpha cannot be learned.
    """

    name: str
    formula: str
    alpha: float
    slope: Callable[[Tensor, Coefficient], Tensor]
    alpha_slope: Callable[[Tensor, Coefficient], Tensor] | None = None


def _atan(x: Tensor, alpha: Coefficient) -> Tensor:
    return alpha / 2 / (1 + (math.pi / 2 * alpha * x) ** 2)


def _atan_alpha(x: Tensor, alpha: Coefficient) -> Tensor:
    return x / 2 / (1 + (math.pi / 2 * alpha * x) ** 2)


def _qgate(x: Tensor, alpha: Coefficient) -> Tensor:
    return (alpha - alpha * alpha * x.abs()).clamp(min=0)


def _gate(x: Tensor, alpha: Coefficient) -> Tensor:
    return (x.abs() * alpha < 1).to(x.dtype)


def _sigmoid(x: Tensor, alpha: Coefficient) -> Tensor:
    y = torch.sigmoid(alpha * x)
    return alpha * y * (1 - y)


def _sigmoid_alpha(x: Tensor, alpha: Coefficient) -> Tensor:
    y = torch.sigmoid(alpha * x)
    return x * y * (1 - y)


def _straight_through(x: Tensor, alpha: Coefficient) -> Tensor:
    return alpha * torch.ones_like(x)


def _relu(x: Tensor, alpha: Coefficient) -> Tensor:
    return alpha * (x > 0).to(x.dtype)


def _relu_alpha(x: Tensor, alpha: Coefficient) -> Tensor:
    return x.clamp(min=0)


def _triangle(x: Tensor, alpha: Coefficient) -> Tensor:
    return (1 - alpha * x.abs()).clamp(min=0)


def _rectangle(x: Tensor, alpha: Coefficient) -> Tensor:
    return alpha * (2 * alpha * x.abs() < 1).to(x.dtype)


def _superspike(x: Tensor, alpha: Coefficient) -> Tensor:
    return 1 / (1 + alpha * x.abs()) ** 2


SURROGATES: dict[str, Surrogate] = {
    s.name: s
    for s in (
        # arctan: Fang et al. 2021 (PLIF); the primitive is arctan(π/2·α·x)/π + 1/2
        Surrogate("atan", "α/2 / (1 + (π/2·α·x)²)", 2.0, _atan, _atan_alpha),
        # quadratic gate: a triangle of area 1; the primitive is a quadratic S-curve
        Surrogate("qgate", "max(0, α − α²·|x|)", 2.0, _qgate),
        Surrogate("gate", "1 where |x| < 1/α, else 0", 2.0, _gate),
        # the derivative of a logistic function: Zenke & Ganguli 2018, supplement
        Surrogate("sigmoid", "α·σ(αx)·(1 − σ(αx))", 2.0, _sigmoid, _sigmoid_alpha),
        # Bengio, Léonard & Courville 2013
        Surrogate("straight_through", "α", 1.0, _straight_through),
        Surrogate("relu", "α where x > 0, else 0", 2.0, _relu, _relu_alpha),
        # Bellec et al. 2018, without their factor 0.3
        Surrogate("triangle", "max(0, 1 − α·|x|)", 1.0, _triangle),
        # Wu et al. 2018 (STBP): height α, width 1/α, area 1
        Surrogate("rectangle", "α where |x| < 1/(2α), else 0", 1.0, _rectangle),
        # fast sigmoid, as SuperSpike uses it: Zenke & Ganguli 2018
        Surrogate("superspike", "1 / (1 + α·|x|)²", 10.0, _superspike),
    )
}


def surrogate(name: str) -> Surrogate:
    """The surrogate of that name; `UserError` with the known ones if there is none."""
    if name not in SURROGATES:
        raise unknown("surrogate", name, SURROGATES)
    return SURROGATES[name]


@dataclass(frozen=True)
class Rule:
    """What a neuron does that is no number: its surrogate, its reset, and what happens at u = threshold exactly.

    `strict` fires at u > threshold, else at u ≥ threshold. Without `through_time` no gradient passes from a step to the one before
    (nor to the potential that a sequence begins with); spikes are the same. In this form that saves neither memory nor much time: a
    layer still sees all steps before the next layer sees one, and keeps what it kept. Memory that does not grow with T takes a loss
    and a backward pass a step. Hashable, so that a compiled kernel can be kept by it.
    """

    surrogate: str = "atan"
    reset: Literal["hard", "soft"] = "hard"
    detach: bool = True
    strict: bool = False
    through_time: bool = True

    def __post_init__(self) -> None:
        surrogate(self.surrogate)
        if self.reset not in ("hard", "soft"):
            raise UserError(f"reset must be 'hard' or 'soft', not {self.reset!r}")


def heaviside(x: Tensor, strict: bool) -> Tensor:
    """H(x): 1 where x ≥ 0 (x > 0 where `strict`), else 0, in x's dtype."""
    return (x > 0 if strict else x >= 0).to(x.dtype)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Coefficient, rule: Rule) -> Tensor:
        ctx.save_for_backward(x, alpha if isinstance(alpha, Tensor) else None)
        ctx.alpha, ctx.rule = (None if isinstance(alpha, Tensor) else alpha), rule
        return heaviside(x, rule.strict)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha = ctx.saved_tensors
        alpha = ctx.alpha if alpha is None else alpha
        g = surrogate(ctx.rule.surrogate)
        grad_alpha = None
        if ctx.needs_input_grad[1] and g.alpha_slope is not None:
            grad_alpha = (grads[0] * g.alpha_slope(x, alpha)).sum_to_size(alpha.shape)
        return grads[0] * g.slope(x, alpha), grad_alpha, None


def spike(x: Tensor, alpha: Coefficient = 2.0, rule: Rule | None = None) -> Tensor:
    """H(x) with the surrogate slope as its derivative.

    x: u − threshold, any shape. Returns 0 and 1 of x's dtype. Gradients: by x, g(x, alpha); by alpha (a tensor), the
    derivative of g's primitive, where the surrogate has one.
    """
    out: Tensor = _Spike.apply(x, alpha, rule or Rule())
    return out


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which potentials are kept, of currents of this one: float32 for half precision, else their own."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def widen(x: Tensor) -> Tensor:
    """x in the dtype in which potentials are kept."""
    return x.to(wide(x.dtype))


def per_channel(c: Coefficient, x: Tensor) -> Coefficient:
    """A coefficient `[C]` shaped to broadcast over one step x `[B,C,...]`; a number as it is.

    Raises `UserError` where the number of values is not the number of channels.
    """
    if not isinstance(c, Tensor) or c.dim() == 0:
        return c
    if c.dim() != 1 or x.dim() < 2 or c.shape[0] != x.shape[1]:
        raise UserError(f"a coefficient of shape {tuple(c.shape)} does not fit a step of shape {tuple(x.shape)}: [C] for [B,C,...]")
    return c.view(-1, *(1,) * (x.dim() - 2))


def step(
    x: Tensor, v: Tensor | None, decay: Coefficient, gain: Coefficient, threshold: Coefficient, alpha: Coefficient, rule: Rule
) -> tuple[Tensor, Tensor]:
    """One step of the recurrence above.

    x: input current of one step `[B,C,...]`; v: potential after the last step, None at rest (zero). Returns the spikes, in
    x's dtype, and the new potential.
    """
    decay, gain, threshold, alpha = (per_channel(c, x) for c in (decay, gain, threshold, alpha))
    current = gain * widen(x)
    u = current if v is None else decay * (v if rule.through_time else v.detach()) + current
    s = spike(u - threshold, alpha, rule)
    r = s.detach() if rule.detach else s
    v = u * (1 - r) if rule.reset == "hard" else u - threshold * r
    return s.to(x.dtype), v


def scan(
    x: Tensor, v: Tensor | None, decay: Coefficient, gain: Coefficient, threshold: Coefficient, alpha: Coefficient, rule: Rule
) -> tuple[Tensor, Tensor]:
    """`step` over a whole sequence x `[T,B,C,...]`, T ≥ 1. Returns spikes `[T,...]` and the potential after the last step."""
    if x.dim() < 1 or x.shape[0] == 0:
        raise UserError(f"a sequence needs at least one time step on axis 0, not the shape {tuple(x.shape)}")
    spikes = []
    for x_t in x.unbind(0):
        s, v = step(x_t, v, decay, gain, threshold, alpha, rule)
        spikes.append(s)
    assert v is not None
    return torch.stack(spikes), v


Total = Callable[[Tensor], Tensor]
"""Sum of a tensor over all processes that share a batch; differentiable, and its own adjoint."""


@dataclass(frozen=True)
class Moments:
    """Mean and (biased) variance per channel, `[S,C]`, S = T for statistics per step, else 1; `count` numbers are behind each."""

    mean: Tensor
    var: Tensor
    count: float


@dataclass(frozen=True)
class Running:
    """Running statistics `[C]`: r ← r + momentum·(found − r), the variance unbiased, for each of the S that a batch has in turn.

    updates: how many batches there were, or None.
    """

    mean: Tensor
    var: Tensor
    momentum: float
    updates: Tensor | None = None

    def update(self, found: Moments) -> None:
        """By those of a batch."""
        unbiased = found.var * unbias(found.count)
        with torch.no_grad():
            for mean, var in zip(found.mean, unbiased, strict=True):
                self.mean.lerp_(mean.to(self.mean.dtype), self.momentum)
                self.var.lerp_(var.to(self.var.dtype), self.momentum)
            if self.updates is not None:
                self.updates.add_(1)


def unbias(count: float) -> float:
    """n / (n − 1), by which a variance is larger than that of the n numbers alone."""
    return count / max(1, count - 1)


@dataclass(frozen=True)
class Norm:
    """A batch norm by the statistics of its input: y = weight·(x − mean) / √(var + eps) + bias, per channel.

    weight, bias: `[C]`, or `[T,C]` for those of each step (not with per_step). per_step: statistics of each step by itself, else over
    all steps. total: where several processes share a batch, the sum over them. running: what the statistics update, if anything.
    """

    weight: Tensor
    bias: Tensor
    eps: float = 1e-5
    per_step: bool = False
    total: Total | None = None
    running: Running | None = None


def moments(x: Tensor, norm: Norm) -> Moments:
    """Statistics of x `[T,B,C,...]` as `norm` wants them."""
    wide = widen(x) if norm.per_step else widen(x).flatten(0, 1)[None]
    places = [d for d in range(1, wide.dim()) if d != 2]
    mean = wide.mean(places)
    apart = wide - mean.view(len(wide), 1, -1, *(1,) * (wide.dim() - 3))
    count = wide[0].numel() / wide.shape[2]
    return together(Moments(mean, apart.square().sum(places) / count, count), norm.total)


def together(mine: Moments, total: Callable[[Tensor], Tensor] | None) -> Moments:
    """The statistics of all processes' values, of which each has its own; total: a sum over processes, or None. One exchange.

        n = Σ nᵢ,  mean = Σ nᵢ·meanᵢ / n,  var = Σ nᵢ·(varᵢ + meanᵢ²) / n − mean²

    In float64: the difference would lose the variance of a channel far from zero.
    """
    if total is None:
        return mine
    mean, var = mine.mean.double(), mine.var.double()
    sums = total(mine.count * torch.stack([mean, var + mean.square(), torch.ones_like(mean)]))
    shared = sums[0] / sums[2]
    spread = (sums[1] / sums[2] - shared.square()).clamp(min=0)
    return Moments(shared.to(mine.mean.dtype), spread.to(mine.var.dtype), float(sums.detach()[2, 0, 0]))


def line(found: Moments, norm: Norm) -> tuple[Tensor, Tensor]:
    """The norm as y = scale·x + shift, both `[S,C]`; S = T where statistics or weights are of each step."""
    scale = norm.weight * torch.rsqrt(found.var + norm.eps)
    return scale, norm.bias - found.mean * scale


def affine(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale·x + shift of x `[T,B,C,...]`, scale and shift `[S,C]`, S = 1 or T, in the dtype of potentials."""
    shape = (len(scale), 1, -1, *(1,) * (x.dim() - 3))
    return scale.view(shape) * widen(x) + shift.view(shape)


def norm_scan(
    x: Tensor, v: Tensor | None, norm: Norm, decay: Coefficient, gain: Coefficient, threshold: Coefficient, alpha: Coefficient, rule: Rule,
    steps: int = 1,
) -> tuple[Tensor, Tensor, Moments]:  # fmt: skip
    """`scan` of the batch norm of x; the currents between them stay in the dtype of potentials. Spikes are in x's dtype.

    x: `[T,B,C,...]`, or `[1,B,C,...]` to be seen `steps` times.
    """
    found = moments(x, norm)
    if norm.running is not None:
        norm.running.update(found)
    y = affine(x, *line(found, norm))
    y = y.expand(steps, *y.shape[1:]) if len(y) == 1 else y
    spikes, v = scan(y, v, decay, gain, threshold, alpha, rule)
    return spikes.to(x.dtype), v, found


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """torch's, which is asked only where gradients are to have a graph: after a layer has emptied the caches it costs 0.07 ms."""
    guarded = torch.autograd.function.once_differentiable(backward)

    @functools.wraps(backward)
    def either(ctx: Any, *grads: Any) -> Any:
        return guarded(ctx, *grads) if torch.is_grad_enabled() else backward(ctx, *grads)

    return either


class _Levels(torch.autograd.Function):
    """round(clip(h, 0, levels)), with slope 1 on 0…levels and 0 elsewhere."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, levels: int) -> Tensor:
        clipped = h.clamp(0, levels)
        ctx.save_for_backward(clipped == h)
        return clipped.round_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (inside,) = ctx.saved_tensors
        return grads[0] * inside, None


def integer_step(x: Tensor, v: Tensor | None, decay: float, threshold: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """One step of integer training (I-LIF: Luo et al., ECCV 2024): `[B,C,...]` → k/levels and the potential after the step.

        u[t] = decay·v[t−1] + x[t],   k[t] = round(clip(u[t]/threshold, 0, levels)),   v[t] = u[t] − threshold·k[t]

    k spikes stand for themselves: fired as k ones and levels − k zeros over `levels` virtual steps, whose mean is the output
    k/levels, they give a linear layer behind the same mean (`spiketrain.unroll`). Gradient: that of round is 1.
    """
    u = x if v is None else decay * v + x
    k: Tensor = _Levels.apply(u / threshold, levels)
    return k / levels, u - threshold * k


def integer_scan(x: Tensor, v: Tensor | None, decay: float, threshold: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """`integer_step` over `[T,B,C,...]`, T ≥ 1 (`UserError` else) → outputs `[T,B,C,...]` and the last potential `[B,C,...]`, in x's dtype.
    """
    if not len(x):
        raise UserError("a sequence needs at least one step")
    outputs = []
    for x_t in x.unbind(0):
        s, v = integer_step(x_t, v, decay, threshold, levels)
        outputs.append(s)
    assert v is not None
    return torch.stack(outputs), v
