"""Tensors that lie in memory in another form than as their numbers: spikes as bits, a gradient by pixels as that by the fewer made of them.

Who knows a form takes it as it is; whatever else is done with such a tensor is done with its numbers, which are made then.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from spiketrain import allocator
from spiketrain.functional import Rule


class Form(Protocol):
    """What a `Lazy` is made of."""

    @property
    def like(self) -> Tensor:
        """Without memory: shape, strides and dtype of the numbers. They are dense, in whatever order of axes."""
        ...

    def dense(self) -> Tensor:
        """The numbers."""
        ...


class Parted(Form, Protocol):
    """Images `[N,C,H,W]`, channels last, that can be made some at a time: N is steps × batch, whatever axes are seen."""

    def part(self, steps: int, first: int, last: int) -> Tensor:
        """Of each of so many steps, the images from `first` to `last` − 1 of the batch, `[steps·(last − first),C,H,W]`."""
        ...

    def some(self, steps: int) -> int:
        """How many images of the batch at a time."""
        ...


CPU = torch.device("cpu")
PIECE = 16 << 20
"""Bytes of images that are made at a time, about: enough for that to take no longer than all at once."""


def size_of(x: Tensor) -> int:
    """Bytes of x's numbers, whether they are in memory or not."""
    return x.numel() * x.element_size()


def at_a_time(like: Tensor, steps: int, share: int = 1) -> int:
    """How many images of the batch, where `like` `[N,C,H,W]` is of that many steps; share: of so many sequences at once."""
    return max(1, PIECE // share // max(1, steps * like.numel() // like.shape[0] * like.element_size()))


def in_parts(like: Tensor) -> bool:
    """Whether it should never be in memory as a whole."""
    return size_of(like) > 2 * PIECE


def parted(x: Tensor | None) -> bool:
    """Whether x is `Parted`, and large enough to be made in parts."""
    return isinstance(x, Lazy) and hasattr(x.form, "part") and in_parts(x)


def without_memory(x: Tensor) -> Tensor:
    """What has x's shape, strides and dtype, and nothing else of it."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


class Lazy(Tensor):
    """A tensor on the processor of which there is a `form` only. Autograd and views work on it as on any other.

    Every other operation is given `dense(x)` in its place; one that would change it in place is a `NotImplementedError`.
    """

    form: Form

    @staticmethod
    def __new__(cls, form: Form, like: Tensor | None = None) -> "Lazy":
        """like: of what shape and strides it is to be seen, if not the form's."""
        like = form.like if like is None else like
        x: Lazy = Tensor._make_wrapper_subclass(cls, like.shape, strides=like.stride(), dtype=like.dtype, device=CPU)
        x.form = form
        return x

    def __init__(self, form: Form, like: Tensor | None = None) -> None:
        pass

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Lazy({type(self.form).__name__}, shape={tuple(self.shape)}, dtype={self.dtype})"

    # What torch does with memory and not by an operation: of the numbers, outside of any graph.

    def numpy(self, *, force: bool = False) -> Any:
        """As `Tensor.numpy`."""
        return dense(self).numpy(force=force)

    def tolist(self) -> Any:
        """As `Tensor.tolist`."""
        return dense(self).tolist()  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: Any) -> Tensor:  # type: ignore[override]
        return dense(self).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dense(self).__reduce_ex__(protocol)

    def data_ptr(self) -> int:
        """There is no address."""
        raise NotImplementedError(f"what lies in memory as {type(self.form).__name__} has no numbers there: clone it first")

    def share_memory_(self) -> "Lazy":
        """Nor can it be shared."""
        raise NotImplementedError(f"what lies in memory as {type(self.form).__name__} cannot be shared: clone it first")

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            x, size = args
            return Lazy(x.form, without_memory(x).view(size))
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            return Lazy(args[0].form, without_memory(args[0]))
        if func._schema.is_mutable and any(isinstance(x, Lazy) for x in args[:1]):
            raise NotImplementedError(f"{func} cannot change what lies in memory as {type(args[0].form).__name__}: clone it first")
        args, kwargs = tree_map_only(Lazy, dense, (args, kwargs or {}))
        return func(*args, **kwargs)


def plain(x: Tensor) -> bool:
    """Whether x is nothing but numbers in memory, and only autograd follows what is done with it.

    Else, that is with a tensor of another class (also one that has no numbers, as `torch.export` takes), one that is to be negated when
    it is read, and where each operation is watched, traced or exported, nobody would see what a kernel does in memory.
    """
    if torch.compiler.is_exporting():  # asked first: the others cannot be exported
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
        return False
    return type(x) in _USUAL and not x.is_neg()


def dense(x: Tensor) -> Tensor:
    """x, in memory as its numbers."""
    if not isinstance(x, Lazy):
        return x
    return x.form.dense().as_strided(x.shape, x.stride())


_USUAL = (Tensor, torch.nn.Parameter, Lazy)
"""Classes of which `plain` knows everything."""


@dataclass(frozen=True)
class OfBits:
    """What is made of spikes that are bits: bit i of byte j is the spike 8j + i in the order of memory."""

    bits: Tensor
    like: Tensor

    def part(self, steps: int, first: int, last: int) -> Self:
        """Those of the images from `first` to `last` − 1 of a batch, of each of so many steps."""
        some = self.bits.view(steps, self.like.shape[0] // steps, -1)[:, first:last].reshape(-1)
        return replace(self, bits=some, like=self.like[: steps * (last - first)])


@dataclass(frozen=True)
class Bits(OfBits):
    """The spikes (0 and 1). passes: the module that makes numbers of them."""

    passes: ModuleType

    def dense(self) -> Tensor:
        spikes = torch.empty_strided(self.like.shape, self.like.stride(), dtype=self.like.dtype, device=self.bits.device)
        filled: Tensor = self.passes.unpack(self.bits, spikes, Rule())
        return filled

    def images(self, first: int, last: int) -> Tensor:
        """Spikes `[N,C,H,W]` of some images; where they are not all, of a multiple of eight numbers before and in them."""
        each = self.like[:1].numel()
        return Bits(self.bits[first * each // 8 : -(-last * each // 8)], self.like[first:last], self.passes).dense()


@dataclass(frozen=True)
class Spread:
    """The gradient by images `[N,C,H,W]`, channels last, of fewer pixels that are made of them: the means over factor × factor, or every
    factor-th of every factor-th row. grad: by those.
    """

    grad: Tensor
    factor: int
    like: Tensor
    means: bool = True

    def dense(self) -> Tensor:
        if not self.means:
            gx = allocator.empty(tuple(self.like.shape), self.grad.dtype, torch.channels_last).zero_()
            gx[:, :, :: self.factor, :: self.factor] = self.grad
            return gx
        gx = F.interpolate(self.grad / self.factor**2, scale_factor=self.factor, mode="nearest")
        return gx.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Pieces:
    """A sequence `[T,P,C,1]`, channels last, of which only some images are ever in memory. make(first, last): the places of those
    from `first` to `last` − 1 of `images`; some: how many at a time; constant: it is one step, seen T times.
    """

    make: Callable[[int, int], Tensor]
    shape: torch.Size
    dtype: torch.dtype
    images: int
    some: int
    constant: bool = False
