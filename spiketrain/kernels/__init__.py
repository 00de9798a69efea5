"""Fast twins of functions in `spiketrain.functional`: same name, same arguments, same gradients.

`scan(..., kernel=...)` chooses one:

- `reference`: the equation itself, a loop over time in plain torch;
- `compiled`: forward and backward each in one pass over memory, compiled by torch; keeps the input current and nothing else;
- `auto`: `compiled` where a compiler is at hand and the sequence is large enough for it to pay, else `reference`.
"""

import functools
import shutil

from torch import Tensor

from spiketrain import functional
from spiketrain.errors import unknown
from spiketrain.functional import Coefficient, Rule
from spiketrain.kernels import leaky

KERNELS = ("auto", "reference", "compiled")
WORTH_COMPILING = 1 << 20
"""Elements of a sequence from which `auto` compiles: below, a step costs less than a millisecond either way."""


@functools.cache
def compiler_found() -> bool:
    """True where torch can compile for the processor (it calls a C++ compiler)."""
    return any(shutil.which(c) for c in ("g++", "clang++", "c++"))


def choose(kernel: str, x: Tensor) -> str:
    """The kernel that `kernel` means for x; `UserError` if there is none of that name."""
    if kernel not in KERNELS:
        raise unknown("kernel", kernel, KERNELS)
    if kernel != "auto":
        return kernel
    return "compiled" if x.numel() >= WORTH_COMPILING and (x.is_cuda or compiler_found()) else "reference"


def scan(
    x: Tensor,
    v: Tensor | None,
    decay: Coefficient,
    gain: Coefficient,
    threshold: Coefficient,
    alpha: Coefficient,
    rule: Rule,
    kernel: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`functional.scan` by the kernel of that name."""
    if choose(kernel, x) == "reference":
        return functional.scan(x, v, decay, gain, threshold, alpha, rule)
    return leaky.scan(x, v, decay, gain, threshold, alpha, rule)
