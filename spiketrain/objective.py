"""From logits per step `[T,B,K]` to a loss, a prediction and an accuracy."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from spiketrain.errors import UserError, unknown

LOSSES = ("ce", "tet", "mse", "onehot-mse", "mix")


def predict(logits: Tensor) -> Tensor:
    """Class `[B]` of logits `[T,B,K]`: the largest of their mean over time."""
    return logits.mean(0).argmax(-1)


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of a batch are right; labels are classes `[B]` or weights `[B,K]`, whose largest then counts."""
    target = labels if labels.dim() == 1 else labels.argmax(-1)
    return (predict(logits) == target).sum()


def difficulty(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy `[B]` of each sample of logits `[T,B,K]`, by their mean over time and without smoothing; labels are classes `[B]`."""
    return F.cross_entropy(logits.detach().float().mean(0), labels, reduction="none")


def distillation(logits: Tensor, tau: float) -> Tensor:
    """Self-distillation over time of logits `[T,B,K]`: a sample's most confident step teaches its least confident one.

        τ²·mean over samples of KL(softmax(o[s]/τ) ‖ softmax(o[w]/τ)),  s, w = arg max, arg min over t of max softmax(o[t])

    The teacher o[s] gets no gradient; τ² keeps the size of the student's whatever the temperature (Hinton et al. 2015). Exactly 0
    where a sample has one step only. At inference nothing changes.
    """
    if len(logits) == 1:
        return logits.new_zeros(())
    confidence = logits.detach().softmax(-1).amax(-1)  # [T,B]
    samples = torch.arange(logits.shape[1], device=logits.device)
    strong, weak = (logits[step, samples] / tau for step in (confidence.argmax(0), confidence.argmin(0)))
    kl = F.kl_div(weak.log_softmax(-1), strong.detach().log_softmax(-1), reduction="batchmean", log_target=True)
    return tau**2 * kl


@dataclass(frozen=True)
class Objective:
    """A loss, by name; `Objective(...)(logits [T,B,K], labels [B] or [B,K])` is a scalar. ō is the mean of the logits over time.

    - "ce": CE(ō, y), with label smoothing ε: (1 − ε)·CE + ε·mean of −log p;
    - "tet": (1 − λ)·mean over t of CE(o[t], y) + λ·MSE(o, φ) (temporal efficient training: Deng et al., ICLR 2022);
    - "mse" and "onehot-mse": MSE(ō, one-hot of y) (one loss: the older benchmark's two names for it);
    - "mix": 0.1·CE(ō, y) + MSE(ō, one-hot of y).

    Labels that are weights `[B,K]`, as mixing makes them, are used as they are: no smoothing is added.

    distil, distil_tau: weight and temperature of self-distillation over time, which is added to any of them; see `distillation`.
    """

    name: str = "ce"
    smoothing: float = 0.0
    tet_lambda: float = 0.0
    tet_phi: float = 1.0
    distil: float = 0.0
    distil_tau: float = 2.0

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise unknown("loss", self.name, LOSSES)
        for field in ("smoothing", "tet_lambda"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"{field} must be in 0…1, not {getattr(self, field)}")
        if self.distil < 0 or self.distil_tau <= 0:
            said = f"not {self.distil} and {self.distil_tau}"
            raise UserError(f"distil must be at least 0 and distil_tau, the temperature, more than 0, {said}")

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits.float()
        loss = self._of_labels(logits, labels)
        return loss + self.distil * distillation(logits, self.distil_tau) if self.distil else loss

    def _of_labels(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.name == "tet":
            target = labels.expand(logits.shape[0], *labels.shape).flatten(0, 1)
            ce = self._cross_entropy(logits.flatten(0, 1), target)
            if self.tet_lambda == 0:
                return ce
            return (1 - self.tet_lambda) * ce + self.tet_lambda * (logits - self.tet_phi).square().mean()
        mean = logits.mean(0)
        if self.name == "ce":
            return self._cross_entropy(mean, labels)
        onehot = labels if labels.dim() == 2 else F.one_hot(labels, mean.shape[-1])
        mse = F.mse_loss(mean, onehot.to(mean.dtype))
        return mse if self.name != "mix" else 0.1 * self._cross_entropy(mean, labels) + mse

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.smoothing if labels.dim() == 1 else 0.0
        loss: Tensor = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return loss


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts `[K,K]`: row = true class, column = predicted."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)
