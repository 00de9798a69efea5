"""Fast twins of functions in `spiketrain.functional`: same arguments, same values, same gradients.

A kernel is chosen by name:

- `reference`: the equation itself, a loop over time in plain torch;
- `compiled`: for the processor, forward and backward each in one pass over memory (`leaky`, `native`), compiled by the machine's
  C++ compiler when first needed;
- `triton`: the same passes for CUDA devices (`leaky`, `gpu`);
- `auto`: the fast one for x's device where there is one, else `reference`; and `reference` where torch itself must see every operation
  (`forms.plain`), and for little on a CUDA device.

`pool`, the max-pooling of currents, and `conv`, 3×3 convolutions, are no neurons and have no such choice: they are taken where
they are faster. `cpp` compiles the C++ sources of this folder.
"""

import functools
import importlib.util
import os
from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from spiketrain import functional
from spiketrain.errors import UserError, unknown
from spiketrain.functional import Coefficient, Moments, Norm, Rule
from spiketrain.kernels import cpp, leaky, native
from spiketrain.kernels.forms import Bits, Lazy, plain, without_memory
from spiketrain.kernels.leaky import Anew
from spiketrain.kernels.pool import Means

KERNELS = ("auto", "reference", "compiled", "triton")
WORTH_TRITON = 1 << 15
"""Elements of a sequence from which `auto` takes Triton's kernels, which are tuned for each size when first met."""

Coefficients = tuple[Coefficient, Coefficient, Coefficient, Coefficient]
"""decay, gain, threshold, alpha."""


@functools.cache
def _triton_found() -> bool:
    return importlib.util.find_spec("triton") is not None


def choose(kernel: str, x: Tensor, rule: Rule) -> str:
    """The kernel that `kernel` means for x: reference, compiled or triton.

    Raises `UserError` where there is none of that name, or it is not for x's device or not to be had here.
    """
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS)
    if kernel == "reference" or (kernel == "auto" and not plain(x)):
        return "reference"
    if kernel == "auto":
        fast = x.numel() >= WORTH_TRITON and _triton_found() if x.is_cuda else x.is_cpu and native.available(rule, x.dtype)
        return ("triton" if x.is_cuda else "compiled") if fast else "reference"
    if kernel == "triton":
        if not _triton_found() or not (x.is_cuda or os.environ.get("TRITON_INTERPRET")):
            raise UserError("kernel 'triton' is for CUDA devices with Triton installed: take --kernel auto")
        return kernel
    if x.device.type != "cpu" or x.dtype not in cpp.ELEMENTS:
        raise UserError(f"kernel 'compiled' is for floats on the processor, not for {x.dtype} on {x.device}: take --kernel auto")
    if not native.available(rule, x.dtype):
        raise UserError("kernel 'compiled' needs a C++ compiler that works: install g++, or take --kernel reference")
    return kernel


def fallback(rule: Rule, dtype: torch.dtype) -> str:
    """A line for the user where `auto` has no fast kernel of that rule and dtype on the processor; empty where it has."""
    if native.available(rule, dtype):
        return ""
    return "no C++ compiler works here: neurons are computed by the reference, which is several times slower (install g++)"


def passes(kernel: str) -> ModuleType:
    """The module with the passes of a fast kernel."""
    if kernel == "compiled":
        return native
    from spiketrain.kernels import gpu

    return gpu


def scan(
    x: Tensor, v: Tensor | None, decay: Coefficient, gain: Coefficient, threshold: Coefficient, alpha: Coefficient, rule: Rule,
    kernel: str = "auto", keep: bool = True,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """`functional.scan` by the kernel of that name. keep: whether the potential after the last step is wanted (else None)."""
    if x.dim() == 0 or x.shape[0] == 0 or (chosen := choose(kernel, x, rule)) == "reference":
        return functional.scan(x, v, decay, gain, threshold, alpha, rule)
    constant = x.shape[0] > 1 and x.stride(0) == 0
    given = x[:1] if constant else x
    spikes, last, _, _ = leaky.scan(passes(chosen), given, v, None, (decay, gain, threshold, alpha), rule, x.shape[0], keep)
    return spikes, last


def norm_scan(
    x: Tensor, v: Tensor | None, norm: Norm, coefficients: Coefficients, rule: Rule, steps: int, kernel: str = "auto", keep: bool = True,
    anew: Anew | None = None, packed: bool = False, along: bool = False,
) -> tuple[Tensor, Tensor | None, Moments, Tensor]:  # fmt: skip
    """`functional.norm_scan` by the kernel of that name, and x, for a shortcut if so wanted (along: see `leaky.Scanned`).

    anew: of an x that is not to be kept (the reference keeps more anyway); packed: whether spikes are wanted as `forms.Bits`, where that
    can be.
    """
    if (chosen := choose(kernel, x, rule)) == "reference":
        return *functional.norm_scan(x, v, norm, *coefficients, rule, steps), x
    spikes, last, found, x = leaky.scan(passes(chosen), x, v, norm, coefficients, rule, steps, keep, anew, packed, along)
    assert found is not None
    return spikes, last, found, x


def affine_scan(
    x: Tensor, affine: tuple[Tensor, Tensor], coefficients: Coefficients, rule: Rule, steps: int, kernel: str = "auto",
    packed: bool = False,
) -> Tensor:  # fmt: skip
    """Spikes of `functional.scan` of scale·x + shift, both `[S,C]`, S = 1 or T, from rest; no gradient. x, packed: as in `norm_scan`."""
    if (chosen := choose(kernel, x, rule)) == "reference":
        y = functional.affine(x, *affine)
        y = y.expand(steps, *y.shape[1:]) if y.shape[0] == 1 else y
        return functional.scan(y, None, *coefficients, rule)[0].to(x.dtype)
    return leaky.affine_scan(passes(chosen), x, affine, coefficients, rule, steps, packed)


def over_steps(x: Tensor) -> Tensor:
    """Sum over the steps of x `[T,B,...]`, as one step. In bfloat16 in the order of memory, by the compiled kernel where there is one."""
    if x.dtype is not torch.bfloat16:  # in torch's order, to the bit
        return x.sum(0, keepdim=True)
    layout = leaky.Layout.of(x, False)
    flat = layout.flat(x)
    compiled = choose("auto", x, Rule()) == "compiled"
    return layout.back(native.over_steps(flat, Rule()) if compiled else flat.sum(0, keepdim=True))


def mean(spikes: Tensor) -> Tensor:
    """The mean of a neuron's output, in float32; bits are counted."""
    if isinstance(spikes, Lazy) and isinstance(spikes.form, Bits):
        return torch.tensor(native.count(spikes.form.bits, spikes.dtype, Rule()) / spikes.numel())
    return spikes.mean(dtype=torch.float32)


def packs(spikes: Tensor) -> bool:
    """Whether spikes like these can be kept as bits here: `pack` would take them."""
    if isinstance(spikes, Lazy):
        return isinstance(spikes.form, Bits | Means)
    dense = torch.empty_like(spikes, device="meta").stride() == spikes.stride()  # in whatever order of axes
    return dense and choose("auto", spikes, Rule()) != "reference"


def pack(spikes: Tensor) -> Bits | Means:
    """Dense spikes (0 and 1) as bits; they, or means of them, may be bits already."""
    if isinstance(spikes, Lazy) and isinstance(spikes.form, Bits | Means):
        return replace(spikes.form, like=without_memory(spikes))
    module = passes(choose("auto", spikes, Rule()))
    return Bits(module.pack(spikes, Rule()), torch.empty_like(spikes, device="meta"), module)
