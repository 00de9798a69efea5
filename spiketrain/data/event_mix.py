"""Mixing two recordings of a batch into one, with labels to match: frames `[T,B,2,H,W]`, soft labels `[B,K]`.

Each function draws λ ~ Beta(β, β) a sample, mixes a sample with probability `prob`, and takes its partner from a random
permutation of the batch (the older benchmark took it from the whole training set; it is one sample of the same
distribution). The input is never written to. Randomness is torch's global generator, numbers drawn on the CPU.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from spiketrain.errors import UserError

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def soft(labels: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Labels `[B]` as soft labels `[B,K]`."""
    return F.one_hot(labels, classes).to(dtype)


def mixup(frames: Tensor, labels: Tensor, beta: float = 2.0, prob: float = 0.5) -> tuple[Tensor, Tensor]:
    """x = λ·x₁ + (1 − λ)·x₂, y = λ·y₁ + (1 − λ)·y₂ (Zhang et al., ICLR 2018)."""
    if not frames.is_floating_point():
        raise UserError(f"mixup takes floating-point frames, got {frames.dtype}: convert them first")
    chosen, lam, partner = _draws(frames, labels, beta, prob)
    lam = torch.where(chosen, lam, torch.ones_like(lam)).to(frames.device)
    share = lam.view(1, -1, 1, 1, 1).to(frames.dtype)
    return share * frames + (1 - share) * frames[:, partner.to(frames.device)], _blend(labels, partner, lam)


def cutmix(frames: Tensor, labels: Tensor, beta: float = 2.0, prob: float = 0.5) -> tuple[Tensor, Tensor]:
    """A box of x₂ replaces that of x₁ in all frames (Yun et al., ICCV 2019).

    Its sides are √(1 − λ) of the frame's, its middle uniform, cut off at the border; labels are weighted by the area that
    it then has.
    """
    chosen, lam, partner = _draws(frames, labels, beta, prob)
    inside = torch.ones(1, dtype=torch.bool)
    for axis, size in enumerate(frames.shape[-2:]):
        side = (torch.sqrt(1 - lam) * size).floor()
        middle = torch.randint(0, size, (len(lam),))
        low = (middle - (side / 2).floor()).clamp(0, size)
        high = (middle + (side / 2).floor()).clamp(0, size)
        place = torch.arange(size).view((1, size, 1) if axis == 0 else (1, 1, size))
        inside = inside & (place >= low.view(-1, 1, 1)) & (place < high.view(-1, 1, 1))
    inside = inside & chosen.view(-1, 1, 1)  # [B,H,W]
    kept = (1 - inside.float().mean((1, 2))).to(frames.device)
    mask = inside.to(frames.device)[None, :, None]
    return torch.where(mask, frames[:, partner.to(frames.device)], frames), _blend(labels, partner, kept)


def eventmix(
    frames: Tensor, labels: Tensor, beta: float = 2.0, prob: float = 0.5, components: int = 3
) -> tuple[Tensor, Tensor]:
    """EventMix (Shen, Zhao, Zeng, Information Sciences 2023): a Gaussian-mixture volume in (t,y,x) of x₂ replaces x₁'s.

    field(t,y,x) = Σₖ πₖ·exp(−½ Σ ((· − μₖ)/σₖ)²), πₖ ~ U(0,1), μₖ a uniform pixel and frame, σ = max(U(0,1), 0.1)·size/2 on each
    axis; the mask is where it exceeds its own (1 − λ)-quantile, so that λ of the volume is replaced, in both polarities.
    Labels are weighted by events: r₁, r₂ = the share of each one's events inside the mask,
    λ' = (1 − r₁)/(1 − r₁ + r₂), y = λ'·y₁ + (1 − λ')·y₂. A recording without events counts as keeping none; where nothing of
    either remains, λ' = 1 − λ.
    """
    chosen, lam, partner = _draws(frames, labels, beta, prob)
    mask = _mixture(frames, lam, components) & chosen.view(-1, 1, 1, 1).to(frames.device)  # [B,T,H,W]
    other = frames[:, partner.to(frames.device)]
    kept = 1 - _share_inside(frames, mask, empty=1.0)
    added = _share_inside(other, mask, empty=0.0)
    weight = torch.where(kept + added > 0, kept / (kept + added).clamp(min=1e-12), 1 - lam.to(kept))
    weight = torch.where(chosen.to(kept.device), weight, torch.ones_like(weight))
    mixed = torch.where(mask.transpose(0, 1)[:, :, None], other, frames)
    return mixed, _blend(labels, partner, weight)


MIXES: dict[str, Mix] = {"mixup": mixup, "cutmix": cutmix, "eventmix": eventmix}


def _draws(frames: Tensor, labels: Tensor, beta: float, prob: float) -> tuple[Tensor, Tensor, Tensor]:
    """Which samples are mixed, λ and partner, `[B]` each, on the CPU."""
    batch = frames.shape[1]
    if labels.dim() != 2 or not labels.is_floating_point() or len(labels) != batch:
        raise UserError(f"mixing takes soft labels [{batch}, classes], got {tuple(labels.shape)} of {labels.dtype}")
    both = torch.full((batch,), beta)
    return torch.rand(batch) < prob, torch.distributions.Beta(both, both).sample(), torch.randperm(batch)


def _blend(labels: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    share = share.to(labels)[:, None]
    return share * labels + (1 - share) * labels[partner.to(labels.device)]


def _mixture(frames: Tensor, lam: Tensor, components: int) -> Tensor:
    """Mask `[B,T,H,W]`: where the sample's own mixture of Gaussians exceeds its (1 − λ)-quantile."""
    batch = len(lam)
    curves = []
    for size in (frames.shape[0], *frames.shape[-2:]):
        middle = torch.randint(0, size, (batch, components, 1))
        deviation = torch.rand(batch, components, 1).clamp(min=0.1) * size / 2
        curves.append(torch.exp(-0.5 * ((torch.arange(size) - middle) / deviation) ** 2).to(frames.device))
    weight = torch.rand(batch, components).to(frames.device)
    field = torch.einsum("bk,bkt,bky,bkx->btyx", weight, *curves)
    flat = field.flatten(1)
    # the quantile that interpolates lies between this value and the next: the same pixels exceed both
    rank = ((flat.shape[1] - 1) * (1 - lam)).long().to(frames.device)
    threshold = flat.sort(1).values.gather(1, rank[:, None])
    return field > threshold.view(-1, 1, 1, 1)


def _share_inside(frames: Tensor, mask: Tensor, empty: float) -> Tensor:
    """Share of each sample's events that lie inside its mask, `[B]`; `empty` for a sample without events."""
    counts = frames.float().sum(2)
    inside, total = (counts * mask.transpose(0, 1)).sum((0, 2, 3)), counts.sum((0, 2, 3))
    return torch.where(total > 0, (inside / total).clamp(0, 1), empty)
