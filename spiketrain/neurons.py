"""Neurons: from parameters to the coefficients of the one recurrence in `spiketrain.functional`.

A neuron holds no state. Called on a sequence `[T,...]` it starts from rest and is a pure function of it; `step` and `scan`
take and return the state for whoever needs time in pieces.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spiketrain import functional, kernels
from spiketrain.errors import UserError, unknown
from spiketrain.functional import Coefficient, Norm, Rule
from spiketrain.kernels.leaky import Anew


class Neuron(nn.Module, ABC):
    """What stands behind a linear layer and is applied along time."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Input currents `[T,B,C,...]` → spikes `[T,B,C,...]`, from rest; a pure function."""

    @abstractmethod
    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """One step: input `[B,C,...]` and the state after the last step (None: rest) → spikes and the new state."""

    @abstractmethod
    def scan(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """A sequence `[T,B,C,...]` from a state (None: rest) → spikes and the state after it."""


class Leaky(Neuron, ABC):
    """The family of one recurrence; a subclass says what `decay` and `gain` are.

        u[t] = decay·v[t−1] + gain·x[t],  s[t] = H(u[t] − threshold),  v[t] = u[t]·(1 − s[t]) or u[t] − threshold·s[t]

    Args:
        threshold: potential at which the neuron fires, in the units of the input current; a number, or `[C]`.
        surrogate, alpha: name of the surrogate slope (`functional.SURROGATES`) and its steepness (None: its own default).
        reset: "hard" (to zero) or "soft" (by subtraction of the threshold).
        detach: no gradient passes through the reset.
        strict: fire at u > threshold; else at u ≥ threshold.
        through_time: the gradient passes from a step to the one before; off: SLTT, see `functional.Rule`.
        learn_threshold, learn_alpha: make them parameters that are trained (alpha where the surrogate allows it).
        kernel: which implementation computes the scan: `kernels.KERNELS`.

    Threshold and alpha are always parameters, frozen unless learned, so that they are in the weights that are saved.
    """

    threshold: nn.Parameter
    alpha: nn.Parameter

    def __init__(
        self,
        *,
        threshold: Coefficient = 1.0,
        surrogate: str = "atan",
        alpha: float | None = None,
        reset: Literal["hard", "soft"] = "hard",
        detach: bool = True,
        strict: bool = False,
        through_time: bool = True,
        learn_threshold: bool = False,
        learn_alpha: bool = False,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        self.rule = Rule(surrogate, reset, detach, strict, through_time)
        slope = functional.surrogate(surrogate)
        if learn_alpha and slope.alpha_slope is None:
            raise UserError(f"surrogate {surrogate!r} has no gradient by alpha: set learn_alpha off or take atan, sigmoid or relu")
        if kernel not in kernels.KERNELS:
            raise unknown("kernel", kernel, kernels.KERNELS)
        self.kernel = kernel
        self.threshold = nn.Parameter(_as_tensor(threshold), requires_grad=learn_threshold)
        self.alpha = nn.Parameter(_as_tensor(slope.alpha if alpha is None else alpha), requires_grad=learn_alpha)

    @abstractmethod
    def coefficients(self) -> tuple[Coefficient, Coefficient]:
        """`(decay, gain)`: the share of the potential kept per step, and the factor on the input."""

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return functional.step(x, state, *self.coefficients(), self.threshold, self.alpha, self.rule)

    def forward(self, x: Tensor, affine: tuple[Tensor, Tensor] | None = None, steps: int = 1, packed: bool = False) -> Tensor:
        """Spikes of x, from rest. affine: scale and shift `[S,C]`, for spikes of scale·x + shift instead, without a gradient, where x may
        be one step `[1,B,C,...]` to be seen `steps` times; packed: as in `normed`."""
        _check_floating(x)
        if affine is not None:
            return kernels.affine_scan(x, affine, self._all_coefficients(), self.rule, steps, self.kernel, packed)
        return kernels.scan(x, None, *self._all_coefficients(), self.rule, self.kernel, keep=False)[0]

    def normed(
        self, x: Tensor, norm: Norm, steps: int, anew: Anew | None = None, packed: bool = False, along: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Spikes of the batch norm of x, from rest, and x, for a shortcut if so wanted (along: see `leaky.Scanned`).

        x: `[T,B,C,...]`, or `[1,B,C,...]` to be seen `steps` times; anew: how the backward pass makes it again, where x is used up
        instead of kept; packed: whether spikes are wanted as `kernels.forms.Bits`, where that can be.
        """
        given = self._all_coefficients(), self.rule, steps, self.kernel, False, anew, packed, along
        spikes, _, _, x = kernels.norm_scan(x, None, norm, *given)
        return spikes, x

    def scan(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        _check_floating(x)
        spikes, last = kernels.scan(x, state, *self._all_coefficients(), self.rule, self.kernel)
        assert last is not None
        return spikes, last

    def _all_coefficients(self) -> kernels.Coefficients:
        return (*self.coefficients(), self.threshold, self.alpha)

    def extra_repr(self) -> str:
        r = self.rule
        through = "" if r.through_time else ", through_time=False"
        return f"surrogate={r.surrogate!r}, reset={r.reset!r}, detach={r.detach}, strict={r.strict}{through}, kernel={self.kernel!r}"


class IF(Leaky):
    """Integrate and fire: u = v + x. Arguments as `Leaky`."""

    def coefficients(self) -> tuple[Coefficient, Coefficient]:
        return 1.0, 1.0


class LIF(Leaky):
    """Leaky integrate and fire: u = (1 − 1/tau)·v + x/tau.

    tau: time constant in steps, ≥ 1; a number, or `[C]` for one a channel. Other arguments as `Leaky`. Source of the
    discrete form: Fang et al. 2021; see docs/from-other-libraries.md for what others call LIF.
    """

    def __init__(self, tau: Coefficient = 2.0, **leaky: Any) -> None:
        super().__init__(**leaky)
        _check_tau(tau, bool((torch.as_tensor(tau) >= 1).all()), "at least 1 step")
        self.tau = tau if isinstance(tau, Tensor) else float(tau)

    def coefficients(self) -> tuple[Coefficient, Coefficient]:
        tau = self.tau.to(self.threshold.device) if isinstance(self.tau, Tensor) else self.tau
        return 1 - 1 / tau, 1 / tau


class PLIF(Leaky):
    """Parametric LIF: LIF whose 1/tau = sigmoid(w) is learned, w₀ = −ln(tau − 1) (Fang et al. 2021).

    tau: time constant in steps at the start, > 1; a number (one w a layer), or `[C]`. Other arguments as `Leaky`.
    """

    def __init__(self, tau: Coefficient = 2.0, **leaky: Any) -> None:
        super().__init__(**leaky)
        _check_tau(tau, bool((torch.as_tensor(tau) > 1).all()), "more than 1 step")
        self.w = nn.Parameter(-torch.log(_as_tensor(tau) - 1))

    def coefficients(self) -> tuple[Coefficient, Coefficient]:
        gain = torch.sigmoid(self.w)
        return 1 - gain, gain


class IntegerLIF(Neuron):
    """LIF that counts while it is trained and spikes when it runs (I-LIF: Luo et al., ECCV 2024); see `functional.integer_step`.

    Its output at a step is k/levels, k in 0 … levels: the mean of k binary spikes over `levels` virtual steps, which
    `unroll.unroll` makes of a trained network. Reset by subtraction; the gradient passes through rounding as if it were not there.

    Args:
        tau: time constant in steps, ≥ 1; at T = 1 it means nothing. The input is not divided by it.
        threshold: potential of a spike, in units of the input current.
        levels: most spikes a step.

    Potentials are in the dtype of the currents: in bfloat16 to three digits, enough for tens of levels.
    """

    threshold: nn.Parameter

    def __init__(self, tau: float = 2.0, threshold: float = 1.0, levels: int = 4) -> None:
        super().__init__()
        _check_tau(tau, tau >= 1, "at least 1 step")
        if threshold <= 0 or levels < 1:
            raise UserError(f"an ilif neuron needs a threshold above 0 and at least 1 level, not {threshold:g} and {levels}")
        self.decay, self.levels = 1 - 1 / tau, levels
        self.threshold = nn.Parameter(_as_tensor(threshold), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        _check_floating(x)
        return self.scan(x)[0]

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return functional.integer_step(x, state, self.decay, self.threshold.to(x.dtype), self.levels)

    def scan(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return functional.integer_scan(x, state, self.decay, self.threshold.to(x.dtype), self.levels)

    def extra_repr(self) -> str:
        return f"decay={self.decay:g}, levels={self.levels}"


class ReLU(Neuron):
    """No neuron at all: max(0, x) at every step. The yardstick: the same network as an ANN. Takes no options."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    def step(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, None]:
        return torch.relu(x), None

    def scan(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, None]:
        return torch.relu(x), None


NEURONS: dict[str, type[Neuron]] = {"if": IF, "lif": LIF, "plif": PLIF, "ilif": IntegerLIF, "relu": ReLU}


@dataclass(frozen=True)
class Spec:
    """Everything that describes a neuron, by name and numbers; `make()` builds one. Fields as in `Leaky` and `LIF`.

    `tau` has no meaning for `if`, `ilif` takes tau, threshold and levels alone, and nothing but the name has one for `relu`.
    """

    name: str = "lif"
    tau: float = 2.0
    threshold: float = 1.0
    surrogate: str = "atan"
    alpha: float | None = None
    reset: Literal["hard", "soft"] = "hard"
    detach: bool = True
    strict: bool = False
    learn_threshold: bool = False
    learn_alpha: bool = False
    kernel: str = "auto"
    levels: int = 4
    through_time: bool = True

    def make(self) -> Neuron:
        """A fresh neuron; `UserError` where the description is wrong."""
        if self.name not in NEURONS:
            raise unknown("neuron", self.name, NEURONS)
        if self.name == "relu":
            return ReLU()
        if self.name == "ilif":
            if not self.through_time or self.learn_threshold:
                raise UserError("neuron ilif knows neither through_time off nor learn_threshold: leave them as they are")
            return IntegerLIF(self.tau, self.threshold, self.levels)
        leaky = {f: getattr(self, f) for f in _LEAKY_FIELDS}
        if self.name == "if":
            return IF(**leaky)
        return (LIF if self.name == "lif" else PLIF)(tau=self.tau, **leaky)


_LEAKY_FIELDS = ("threshold", "surrogate", "alpha", "reset", "detach", "strict", "through_time", "learn_threshold", "learn_alpha", "kernel")


def _as_tensor(value: Coefficient) -> Tensor:
    return value.detach().clone() if isinstance(value, Tensor) else torch.tensor(float(value))


def _check_floating(x: Tensor) -> None:
    if not x.is_floating_point():
        raise UserError(f"a neuron takes floating-point currents, not {x.dtype}: call .float() on the input")


def _check_tau(tau: Coefficient, good: bool, bound: str) -> None:
    if not good:
        raise UserError(f"tau must be {bound}, not {tau}")
