"""What stands between neurons: linear layers per step, norms over time, pooling, readouts, encoders.

Everything here takes and returns `[T,B,...]`, time on axis 0. An input that is the same at every step has a stride of 0
along time (`Tensor.expand`): linear layers and norms then work on one step, and time starts at the first neuron.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spiketrain import kernels, processes, sync
from spiketrain.errors import UserError, unknown
from spiketrain.functional import Moments, Norm, Running, line, once_differentiable, widen
from spiketrain.kernels import conv
from spiketrain.kernels.leaky import Anew
from spiketrain.kernels.pool import avg_pool, max_pool
from spiketrain.neurons import Leaky, Neuron, Spec
from spiketrain.saving import added, again, computed, conv_and_anew, conv_of_spikes, convolve, currents

NORMS = ("time", "step", "tdbn", "tebn")
ENCODERS = ("direct", "rate", "ttfs", "phase")


def same_at_every_step(x: Tensor) -> bool:
    """True where x `[T,...]` is one step seen T times, as `Tensor.expand` makes it."""
    return x.shape[0] > 1 and x.stride(0) == 0


def fold(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A layer without memory applied to every step of x `[T,B,...]`: time is folded into the batch; a constant input is done once."""
    if same_at_every_step(x):
        return repeated(layer(once(x)[0])[None], x.shape[0])
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@dataclass(frozen=True)
class NormSpec:
    """Which batch norm, by name (`NORMS`), and what it must know of the network that it stands in.

    threshold: of the neurons behind it; steps: T; share: α, the part of a sum of branches that its own branch is (see `BatchNorm`).
    """

    name: str = "time"
    threshold: float = 1.0
    steps: int = 4
    share: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in NORMS:
            raise unknown("norm", self.name, NORMS)

    @staticmethod
    def of(norm: "str | NormSpec") -> "NormSpec":
        """A name, or what is one already."""
        return NormSpec(norm) if isinstance(norm, str) else norm

    def one_of(self, branches: int) -> "NormSpec":
        """Of a norm at the end of one of so many branches that are added up: α = 1/√branches."""
        return replace(self, share=branches**-0.5)


class BatchNorm(nn.Module):
    """Batch norm of `[T,B,C,H,W]` over space, batch and, by the norm's name, time.

    - "time": one mean and variance a channel over (T,B,H,W), one update of the running statistics a call;
    - "step": statistics of each step by itself and T updates a call, as a network that is looped over time does it. This
      is what the older benchmark published; in evaluation both are the same.
    - "tdbn" (threshold-dependent: Zheng et al., AAAI 2021): statistics as "time", and y = γ·α·threshold·x̂ + β, so that currents
      spread as far as the threshold is high. α is 1, but 1/√2 in both of two branches that are added: the end of a residual branch
      and the norm of its shortcut. Here the weight begins at α·threshold instead of a factor standing beside it: the same functions
      and the same start, while a step of the optimiser on the weight is not scaled by the factor. It costs no more than "time".
    - "tebn" (temporal effective: Duan et al., NeurIPS 2022): statistics as "time", and y[t] = p[t]·(γ·x̂[t] + β), p learned, one a
      step, 1 at the start. T is then part of the network: another is a `UserError`.

    Where several processes train the network, the statistics are of all their rows.
    """

    def __init__(self, channels: int, norm: str | NormSpec = "time") -> None:
        super().__init__()
        spec = NormSpec.of(norm)
        self.bn = nn.BatchNorm2d(channels)
        self.mode = spec.name
        if spec.name == "tdbn":
            nn.init.constant_(self.bn.weight, spec.share * spec.threshold)
        self.p = nn.Parameter(torch.ones(spec.steps)) if spec.name == "tebn" else None

    def forward(self, x: Tensor) -> Tensor:
        self.check(x.shape[0])
        return self._normed(x) if self.p is None else self._normed(x) * self.p.view(-1, *(1,) * (x.dim() - 1))

    def check(self, steps: int) -> None:
        """`UserError` where the norm is for another number of steps."""
        if self.p is not None and steps != len(self.p):
            said = f"a factor for each of {len(self.p)} steps and cannot take {steps}"
            raise UserError(f"norm 'tebn' has {said}: build the network with as many steps, or take --norm time")

    def _normed(self, x: Tensor) -> Tensor:
        if not self.training or (self.mode != "step" and processes.world() == 1):
            return fold(lambda y: _by_last(self.bn(y)), x)
        if self.mode != "step":
            self.bn.num_batches_tracked.add_(1)  # type: ignore[union-attr]
            return fold(lambda y: self._normalise(y, self._momentum()), x)
        if same_at_every_step(x):  # T equal updates of the running statistics in one
            y = self._normalise(x[0], self._repeated(x.shape[0]))
            return y.expand(x.shape[0], *y.shape)
        return torch.stack([self._normalise(x_t, self._momentum()) for x_t in x.unbind(0)])

    def again(self, x: Tensor) -> Tensor:
        """What `forward` gives, without an update of the running statistics."""
        twin = copy.deepcopy(self)
        twin.bn.weight, twin.bn.bias, twin.p = self.bn.weight, self.bn.bias, self.p
        y: Tensor = twin(x)
        return y

    def batch(self, running: Running | None = None) -> Norm:
        """The norm by the statistics of a batch, for kernels that do it together with the neuron."""
        bn = self.bn
        rows: tuple[Tensor, Tensor] = bn.weight, bn.bias
        if self.p is not None:
            rows = self.p[:, None] * bn.weight, self.p[:, None] * bn.bias
        return Norm(*rows, bn.eps, self.mode == "step", sync.total if processes.world() > 1 else None, running)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The norm in evaluation mode as scale and shift `[S,C]`, S = 1 or T."""
        mean, var = self._statistics()
        return line(Moments(mean[None], var[None], 1), self.batch())

    def running(self, repeats: int = 1) -> Running:
        """The running statistics, for a batch of steps of which each is seen so many times."""
        if self.mode == "step":
            return Running(*self._statistics(), self._repeated(repeats))
        return Running(*self._statistics(), self._momentum(), self.bn.num_batches_tracked)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, var = self.bn.running_mean, self.bn.running_var
        assert mean is not None and var is not None
        return mean, var

    def _momentum(self) -> float:
        assert self.bn.momentum is not None
        return self.bn.momentum

    def _repeated(self, steps: int) -> float:
        return self._momentum() if steps == 1 else float(1 - (1 - self._momentum()) ** steps)

    def _normalise(self, x: Tensor, momentum: float) -> Tensor:
        bn = self.bn
        if processes.world() > 1:
            return sync.batch_norm(x, self._statistics(), bn.weight, bn.bias, momentum, bn.eps)
        return _by_last(F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, True, momentum, bn.eps))


def _by_last(y: Tensor) -> Tensor:
    """y, a batch norm's, whose gradient will be channels last where y is: with any other, as a mean over space gives, torch's backward
    pass takes eight times as long in bfloat16 on the processor.
    """
    plain = y.device.type == "cpu" and y.dtype is torch.bfloat16 and not torch.compiler.is_compiling()
    if plain and y.requires_grad and y.is_contiguous(memory_format=torch.channels_last):
        y.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))
    return y


def fire(
    norm: BatchNorm, neuron: Neuron, x: Tensor, steps: int, update: bool = True, anew: Anew | None = None, packed: bool = False
) -> Tensor:
    """Spikes of the normed x: `[T,B,C,H,W]`, or one step `[1,B,C,H,W]` to be seen `steps` times, → `[T,B,C,H,W]`.

    Norm and neuron in one pass over memory where the neuron's kernel is a fast one; the currents between them are never
    stored. They are in the dtype of potentials either way. update: whether the norm's running statistics are.
    anew: how the backward pass makes x again, where it is not to be kept, and used up; packed: whether a convolution, or a mean, is
    next: where that reads bits, spikes come as such.
    """
    return _fire(norm, neuron, x, steps, update, anew, packed)[0]


def fire_along(norm: BatchNorm, neuron: Neuron, x: Tensor, steps: int, packed: bool = False) -> tuple[Tensor, Tensor]:
    """`fire`, and x for a shortcut around it: the gradient by that is added in the pass over memory that writes the gradient by x."""
    return _fire(norm, neuron, x, steps, True, None, packed, True)


def _fire(
    norm: BatchNorm, neuron: Neuron, x: Tensor, steps: int, update: bool, anew: Anew | None, packed: bool, along: bool = False
) -> tuple[Tensor, Tensor]:
    norm.check(steps)
    kernel = kernels.choose(neuron.kernel, x, neuron.rule) if isinstance(neuron, Leaky) else "reference"
    if isinstance(neuron, Leaky) and kernel != "reference":
        packed = packed and conv.reads_bits(x)
        if norm.training:
            batch = norm.batch(norm.running(steps // x.shape[0]) if update else None)
            return neuron.normed(x, batch, steps, anew, packed, along)
        if not torch.is_grad_enabled():
            return neuron(x, norm.affine(), steps, packed), x
    if anew is not None and not anew.itself:
        rest = functools.partial(_each_after_the_other, norm, neuron, steps)
        return again(rest, x, anew, [*norm.parameters(), *neuron.parameters()]), x
    return _each_after_the_other(norm, neuron, steps, x, update), x


def _each_after_the_other(norm: BatchNorm, neuron: Neuron, steps: int, x: Tensor, update: bool) -> Tensor:
    wide = (widen(x) if isinstance(neuron, Leaky) else x).expand(steps, *x.shape[1:])
    out: Tensor = neuron(norm(wide) if update else norm.again(wide))
    return out.to(x.dtype)


def once(x: Tensor) -> Tensor:
    """x `[T,...]`, or its first step alone where all are the same."""
    if not same_at_every_step(x):
        return x
    step: Tensor | None = getattr(x, "step", None)
    # x may have got another graph since, as what a custom function returns does
    return step if step is not None and step.requires_grad == x.requires_grad else x[:1]


class _Repeated(torch.autograd.Function):
    """`Tensor.expand` along time."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, steps: int) -> Tensor:
        return step.expand(steps, *step.shape[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return kernels.over_steps(grads[0]), None


def repeated(step: Tensor, steps: int) -> Tensor:
    """`[1,B,...]` seen so many times. `once` gives that very tensor back: a slice's gradient would be as large as all steps, of zeros."""
    x: Tensor = _Repeated.apply(step, steps) if step.requires_grad else step.expand(steps, *step.shape[1:])
    x.step = step  # type: ignore[attr-defined]
    return x


class Conv(nn.Conv2d):
    """A convolution of size×size taps (of an odd size), padding size // 2, no bias; by `kernels.conv` where that is faster."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, size, stride, size // 2, bias=False)

    def forward(self, x: Tensor, plus: Tensor | None = None) -> Tensor:
        """plus: what is added to the result; if it has fewer images, to each so many of them."""
        if conv.pays(x, self.weight, self.stride[0], self.kernel_size[0] // 2):  # on the processor: autocast knows no meta device
            dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.weight.dtype
            if x.shape[1] <= conv.FEW:  # images are float32
                x = computed(x)
            if x.dtype is dtype:
                return convolve(self, x, None, plus)
        y: Tensor = super().forward(x)
        return y if plus is None else added(y, plus)


class Conv3x3(Conv):
    """The one that every network here is made of."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride)


class Conv1x1(Conv):
    """Of shortcuts, and of bottlenecks."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 1, stride)


class ConvBlock(nn.Module):
    """conv 3×3 → (max-pool, maxout) → batch norm → neuron: `[T,B,Cin,H,W]` → `[T,B,Cout,H',W']`.

    pool: factor of a max-pooling of the currents, before the neuron, so that what comes out is spikes; 1 for none. pieces: a current is
    the greatest of so many channels of the convolution, which has pieces·Cout of them (Goodfellow et al., "Maxout networks", ICML 2013).
    spiking: whether what goes in is spikes. memory: what is kept for the backward pass, see `saving`. stride: of the convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, neuron: Spec, norm: str | NormSpec = "time", pool: int = 1, spiking: bool = False,
        memory: str = "speed", stride: int = 1, pieces: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = Conv3x3(inputs, outputs * pieces, stride)
        self.pool, self.pieces = pool, pieces
        self.spiking, self.memory = spiking, memory
        self.norm = BatchNorm(outputs, norm)
        self.neuron = neuron.make()

    def forward(self, x: Tensor) -> Tensor:
        def spikes(y: Tensor, first: bool, anew: Anew | None = None) -> Tensor:
            if min(y.shape[-2:]) < self.pool:
                raise UserError(f"{y.shape[-2]}×{y.shape[-1]} pixels cannot be pooled once more: this network needs larger images")
            if self.pool > 1 or self.pieces > 1:  # before the norm, which then has a quarter of the work
                y = fold(lambda z: max_pool(z, self.pool, self.pieces), y)
            return fire(self.norm, self.neuron, y, steps, first, anew, packed=True)

        steps, given = x.shape[0], once(x)
        if self.pool * self.pieces == 1:
            y, kept = currents(self.conv, given, steps, self.spiking, self.memory)
            return spikes(y, True, kept)
        if self.memory == "least":
            y, anew = conv_and_anew(self.conv, given, self.spiking)
            return again(spikes, y, anew, [*self.norm.parameters(), *self.neuron.parameters()])
        linear = functools.partial(conv_of_spikes, self.conv) if self.spiking and self.memory == "bits" else self.conv
        return spikes(fold(linear, given), True)


class AvgPool(nn.Module):
    """Mean over windows of `factor`² pixels, per step."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return fold(lambda y: avg_pool(y, self.factor, conv.reads_bits(y)), x)


class Dropout(nn.Module):
    """Dropout with one mask for all steps: a unit that is off is off for the whole sequence."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * F.dropout(torch.ones_like(x[0]), self.p, self.training)


class Dense(nn.Module):
    """Linear layer and neuron: `[T,B,...]` flattened to `[T,B,N]` → `[T,B,M]`."""

    def __init__(self, inputs: int, outputs: int, neuron: Spec) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)
        self.neuron: Neuron = neuron.make()

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        if x.shape[2] != self.fc.in_features:
            other = "choose images of another size, or another network"
            raise UserError(f"a layer of this network takes {self.fc.in_features} values, and these images give {x.shape[2]}: {other}")
        spikes: Tensor = self.neuron(fold(self.fc, x))
        return spikes


class Readout(nn.Module):
    """Mean over space where there is any, then a linear layer per step: `[T,B,C,H,W]` or `[T,B,C]` → logits `[T,B,K]`."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return fold(self.fc, x.mean((3, 4)) if x.dim() == 5 else x)


def encode(images: Tensor, steps: int, encoder: str = "direct") -> Tensor:
    """Images `[B,C,H,W]` → `[T,B,C,H,W]`.

    - "direct": the image at every step (a view, nothing is copied);
    - "rate": 1 with probability x, independently at every step;
    - "ttfs": time to first spike: a value in ((T−i−1)/T, (T−i)/T] gives 1/(i+1) at step i; zero never fires;
    - "phase": the eight bits of ⌊256·x⌋ from the highest on, bit i weighing 2^−(i+1), repeated every eight steps.

    All but "direct" take intensities x in 0…1.
    """
    if encoder == "direct":
        return images.expand(steps, *images.shape)
    if encoder == "rate":
        return (torch.rand(steps, *images.shape, device=images.device) < images).to(images.dtype)
    t = torch.arange(steps, device=images.device).view(-1, *(1,) * images.dim())
    if encoder == "ttfs":
        first = (steps - torch.ceil(images * steps)).long()
        return ((first == t) & (images > 0)).to(images.dtype) / (t + 1)
    if encoder == "phase":
        level = (images * 256).long().clamp(0, 255)
        return ((level >> (7 - t % 8)) & 1).to(images.dtype) * 0.5 ** (t % 8 + 1)
    raise unknown("encoder", encoder, ENCODERS)


def check_frames(x: Tensor, channels: int) -> None:
    """`UserError` where x is not `[B,C,H,W]` or `[T,B,C,H,W]` with that many channels."""
    if x.dim() not in (4, 5) or x.shape[-3] != channels:
        wanted = f"[B,{channels},H,W] or [T,B,{channels},H,W]"
        raise UserError(f"this network takes {wanted}, not a tensor of shape {tuple(x.shape)}")
