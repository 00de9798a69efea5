"""Damage to a test set, for robustness: stored images or event frames in, the same dtype and shape out, seeded."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

Damage = Callable[[Tensor, float, Generator], Tensor]


def drop_pixels(images: Tensor, level: float, generator: Generator) -> Tensor:
    """A share `level` of the pixels (all channels of them) becomes zero."""
    kept = torch.rand(len(images), 1, *images.shape[-2:], generator=generator) >= level
    return images * kept.to(images.dtype)


def gaussian_noise(images: Tensor, level: float, generator: Generator) -> Tensor:
    """Normal noise of standard deviation `level`, in units of the full range."""
    noisy = images.float() + 255 * level * torch.randn(images.shape, generator=generator)
    return noisy.round().clamp(0, 255).to(images.dtype)


def shift(inputs: Tensor, level: float, generator: Generator) -> Tensor:
    """Every sample moves by up to `level` pixels along each axis; what comes in is empty."""
    most = int(level)
    moved = torch.zeros_like(inputs)
    height, width = inputs.shape[-2:]
    for sample, (dy, dx) in enumerate(torch.randint(-most, most + 1, (len(inputs), 2), generator=generator).tolist()):
        to = (slice(max(0, dy), height + min(0, dy)), slice(max(0, dx), width + min(0, dx)))
        of = (slice(max(0, -dy), height + min(0, -dy)), slice(max(0, -dx), width + min(0, -dx)))
        moved[(sample, ..., *to)] = inputs[(sample, ..., *of)]
    return moved


def drop_events(frames: Tensor, level: float, generator: Generator) -> Tensor:
    """Every event is lost with probability `level`: counts become binomial."""
    kept = torch.binomial(frames.float(), torch.full(frames.shape, 1 - level), generator=generator)
    return kept.to(frames.dtype)


def noise_events(frames: Tensor, level: float, generator: Generator) -> Tensor:
    """Events that nothing caused: a Poisson number of mean `level` at every pixel, polarity and frame."""
    extra = torch.poisson(torch.full(frames.shape, level), generator=generator)
    top = 255 if frames.dtype == torch.uint8 else 32_767
    return (frames.float() + extra).clamp(max=top).to(frames.dtype)


def jitter_time(frames: Tensor, level: float, generator: Generator) -> Tensor:
    """Every frame is replaced, with probability `level`, by the one before or after it."""
    n, steps = frames.shape[:2]
    moves = torch.randint(0, 2, (n, steps), generator=generator) * 2 - 1
    moves *= torch.rand(n, steps, generator=generator) < level
    source = (torch.arange(steps) + moves).clamp(0, steps - 1)
    return frames[torch.arange(n)[:, None], source]


IMAGES: dict[str, tuple[Damage, tuple[float, ...]]] = {
    "pixels dropped": (drop_pixels, (0.1, 0.3, 0.5)),
    "Gaussian noise": (gaussian_noise, (0.05, 0.1, 0.2)),
    "shift in pixels": (shift, (1, 2, 4)),
}
EVENTS: dict[str, tuple[Damage, tuple[float, ...]]] = {
    "events dropped": (drop_events, (0.1, 0.3, 0.5, 0.7)),
    "noise events": (noise_events, (0.01, 0.05, 0.1)),
    "frames jittered": (jitter_time, (0.1, 0.3, 0.5)),
    "shift in pixels": (shift, (1, 2, 4)),
}
"""Kind of damage → function and the levels that are tried."""
