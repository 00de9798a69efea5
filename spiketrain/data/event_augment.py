"""Augmentations for batches of event frames `[T,B,2,H,W]`, on the frames' own device, each sample with a draw of its own.

`AUGMENTATIONS` (frames → frames) lists them by name; what mixes samples is in `event_mix`. The input is never written to;
shape and dtype stay. Whatever moves or removes events takes any dtype; whatever adds fractions (`blur`) or draws from counts
(`event_drop`, `time_jitter`, `salt`) takes floating-point frames.

Randomness is torch's global generator. Numbers drawn once a sample come from the CPU's, so the same seed gives the same
rotations on every device; numbers drawn once a pixel come from the device's.

A rotation, shear, crop, flip or roll is a map `[B,H·W]` from output pixel to input pixel (−1: none, stays empty). Maps are
composed first and the frames are moved once, by nearest pixel: an event stays one event.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from spiketrain.errors import UserError

Augmentation = Callable[[Tensor], Tensor]


def flip(frames: Tensor, prob: float = 0.5) -> Tensor:
    """Mirrored left to right with probability `prob`, all frames of a sample alike."""
    return _move(frames, _flipped(frames, prob))


def crop(frames: Tensor, padding: int | None = None) -> Tensor:
    """Random crop of the frame padded with empty pixels: moved by up to ±padding (default H // 12) on each axis."""
    return _move(frames, _cropped(frames, padding))


def rotate(frames: Tensor, degrees: float = 15.0) -> Tensor:
    """Rotated about the centre by an angle uniform in ±degrees."""
    return _move(frames, _turned(frames, _uniform(frames, -degrees, degrees), _zeros(frames)))


def shear(frames: Tensor, degrees: float = 30.0) -> Tensor:
    """Sheared along x by an angle uniform in ±degrees."""
    return _move(frames, _turned(frames, _zeros(frames), _uniform(frames, -degrees, degrees)))


def roll(frames: Tensor, pixels: int | None = None) -> Tensor:
    """Rolled around both axes by up to ±pixels (default 5 in 48); what leaves on one side returns on the other."""
    return _move(frames, _rolled(frames, pixels, torch.ones(frames.shape[1], dtype=torch.bool)))


def crop_flip_rotate(
    frames: Tensor, padding: int | None = None, prob: float = 0.5, degrees: float = 15.0
) -> Tensor:
    """Crop, then flip, then rotation: what the older benchmark does to CIFAR10-DVS (padding size // 12, ±15°)."""
    first = _then(_cropped(frames, padding), _flipped(frames, prob))
    return _move(frames, _then(first, _turned(frames, _uniform(frames, -degrees, degrees), _zeros(frames))))


def nda(frames: Tensor, pixels: int | None = None, degrees: float = 30.0) -> Tensor:
    """Neuromorphic data augmentation (Li et al., ECCV 2022): a flip (½), then one of roll, rotation and x-shear.

    Roll up to ±5 pixels in 48, rotation and shear up to ±30°; the same for all frames of a sample. The paper adds
    CutMix: see `MIXES`.
    """
    choice = torch.randint(0, 3, (frames.shape[1],))
    angle = _uniform(frames, -degrees, degrees)
    turned = _turned(frames, angle * (choice == 1), angle * (choice == 2))
    return _move(frames, _then(_then(_flipped(frames, 0.5), _rolled(frames, pixels, choice == 0)), turned))


def polarity_flip(frames: Tensor, prob: float = 0.5) -> Tensor:
    """On and off swapped with probability `prob`, as if the contrast of the scene were reversed."""
    chosen = (torch.rand(frames.shape[1]) < prob).to(frames.device)
    return torch.where(_over(chosen, frames), frames.flip(2), frames)


def cutout(frames: Tensor, share: float = 0.25) -> Tensor:
    """A square of side share·W at a uniform place is emptied in all frames (DeVries & Taylor, 2017)."""
    size = torch.full((frames.shape[1],), share)
    return frames.masked_fill(_rectangle(frames, size * frames.shape[-1], size * frames.shape[-1]), 0)


def cutout_time(frames: Tensor, share: float = 0.25) -> Tensor:
    """n consecutive frames are emptied, n = floor(U(0, share)·T)."""
    length = (_uniform(frames, 0.0, share) * frames.shape[0]).long()
    return frames.masked_fill(_stretch(frames, length), 0)


def blur(frames: Tensor, sigma: float = 0.5) -> Tensor:
    """Gaussian blur over 5×5 pixels with σ uniform in (0.1, sigma), mirrored at the border."""
    _needs_float("blur", frames)
    if min(frames.shape[-2:]) < 3:
        raise UserError(f"blur needs frames of at least 3 x 3 pixels, got {tuple(frames.shape[-2:])}")
    deviation = _uniform(frames, min(0.1, sigma), max(0.1, sigma))[:, None]
    taps = torch.exp(-0.5 * (torch.arange(-2, 3) / deviation) ** 2)
    taps = (taps / taps.sum(1, keepdim=True)).to(frames)  # [B,5]
    height, width = frames.shape[-2:]
    padded = F.pad(frames.flatten(0, 1), (2, 2, 2, 2), mode="reflect").unflatten(0, frames.shape[:2])
    rows = sum(_over(taps[:, i], frames) * padded[..., i : i + height, :] for i in range(5))
    return sum((_over(taps[:, i], frames) * rows[..., i : i + width] for i in range(5)), torch.zeros_like(frames))


def salt(frames: Tensor, share: float = 0.15) -> Tensor:
    """Every pixel of every frame gains one event with probability U(0, share), drawn once a sample. Adds, never removes."""
    _needs_float("salt", frames)
    prob = _over(_uniform(frames, 0.0, share).to(frames.device), frames)
    return frames + (torch.rand_like(frames, dtype=torch.float32) < prob).to(frames.dtype)


def randaugment(frames: Tensor, n: int = 3, m: float = 15.0) -> Tensor:
    """n of four operations a sample, drawn with replacement, at strength m/30 of each one's largest.

    `cutout` (largest 0.5 of the width), `cutout_time` (0.5 of T), `blur` (σ 1), `salt` (0.3): the set that was left
    switched on in the older benchmark, whose defaults are n = 3, m = 15.
    """
    _needs_float("randaugment", frames)
    out, level = frames.clone(), m / 30
    for _ in range(n):
        choice = torch.randint(0, len(_STRONGEST), (frames.shape[1],))
        for number, (operation, strongest) in enumerate(_STRONGEST):
            chosen = (choice == number).nonzero().squeeze(1).to(frames.device)
            if len(chosen):
                out[:, chosen] = operation(out[:, chosen], level * strongest)
    return out


def event_drop(frames: Tensor) -> Tensor:
    """EventDrop (Gu et al., IJCAI 2021) on counts: one of four operations a sample, each with probability ¼.

    Nothing; every event dropped with probability ρ; all events of a stretch of ρ·T frames dropped; all events in a
    rectangle of ρ·W × ρ·H pixels dropped. ρ is 0.1, 0.2 … 0.9 for the first two and 0.05, 0.1 … 0.3 for the rectangle.
    """
    _needs_float("event_drop", frames)
    batch = frames.shape[1]
    choice = torch.randint(0, 4, (batch,))
    rho = torch.randint(1, 10, (batch,)) / 10
    area = torch.randint(1, 7, (batch,)) * 0.05 * (choice == 3)
    dropped = _stretch(frames, (rho * frames.shape[0]).round().long() * (choice == 2))
    dropped = dropped | _rectangle(frames, area * frames.shape[-2], area * frames.shape[-1])
    keep = torch.where(choice == 1, 1 - rho, torch.ones(batch)).to(frames.device)
    return _thin(frames, _over(keep, frames)).masked_fill(dropped, 0)


def time_jitter(frames: Tensor, share: float = 0.2) -> Tensor:
    """Each event moves to the frame before or after its own with probability `share` (half each); the sum is conserved.

    An event of the first or last frame that would leave the recording stays.
    """
    _needs_float("time_jitter", frames)
    moving = _thin(frames, torch.full((), share, device=frames.device))
    later = _thin(moving, torch.full((), 0.5, device=frames.device))
    earlier = moving - later
    out = frames - moving
    out[1:] += later[:-1]
    out[-1] += later[-1]
    out[:-1] += earlier[1:]
    out[0] += earlier[0]
    return out


_STRONGEST: tuple[tuple[Callable[[Tensor, float], Tensor], float], ...] = (
    (cutout, 0.5),
    (cutout_time, 0.5),
    (blur, 1.0),
    (salt, 0.3),
)

AUGMENTATIONS: dict[str, Augmentation] = {
    "flip": flip,
    "crop": crop,
    "rotate": rotate,
    "shear": shear,
    "roll": roll,
    "crop-flip-rotate": crop_flip_rotate,
    "nda": nda,
    "polarity-flip": polarity_flip,
    "cutout": cutout,
    "cutout-time": cutout_time,
    "blur": blur,
    "salt": salt,
    "randaugment": randaugment,
    "event-drop": event_drop,
    "time-jitter": time_jitter,
}


def _needs_float(name: str, frames: Tensor) -> None:
    if not frames.is_floating_point():
        raise UserError(f"{name} takes floating-point frames, got {frames.dtype}: convert them first")


def _uniform(frames: Tensor, low: float, high: float) -> Tensor:
    """One number a sample, `[B]`, on the CPU."""
    return low + (high - low) * torch.rand(frames.shape[1])


def _zeros(frames: Tensor) -> Tensor:
    return torch.zeros(frames.shape[1])


def _over(values: Tensor, frames: Tensor) -> Tensor:
    """`[B]` → `[1,B,1,1,1]`."""
    return values.view(1, -1, 1, 1, 1)


def _thin(counts: Tensor, keep: Tensor) -> Tensor:
    """Every event kept with probability `keep`: binomial in the whole part of a count, all or nothing in its fraction."""
    wide = counts.float()
    keep = keep.expand_as(wide)
    whole = wide.floor()
    part = (torch.rand_like(wide) < keep) * (wide - whole)
    return (torch.binomial(whole, keep) + part).to(counts.dtype)


def _rectangle(frames: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Mask `[1,B,1,H,W]` of a rectangle a sample with its middle anywhere, moved inside on the low side, cut on the high."""
    masks = []
    for size, side in zip(frames.shape[-2:], (height, width), strict=True):
        side = side.floor()
        low = (torch.rand(len(side)) * size - side / 2).clamp(min=0).floor()
        place = torch.arange(size)
        masks.append((place >= low[:, None]) & (place < (low + side)[:, None]))
    return (masks[0][:, :, None] & masks[1][:, None, :])[None, :, None].to(frames.device)


def _stretch(frames: Tensor, length: Tensor) -> Tensor:
    """Mask `[T,B,1,1,1]` of `length` consecutive frames a sample, anywhere."""
    steps = frames.shape[0]
    start = (torch.rand(len(length)) * (steps - length + 1)).floor()
    time = torch.arange(steps)[:, None]
    return ((time >= start) & (time < start + length))[:, :, None, None, None].to(frames.device)


def _index(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """Rows and columns (whole numbers, any that broadcast to `[B,H,W]`) → map `[B,H·W]`, −1 where outside."""
    rows, columns = torch.broadcast_tensors(rows, columns)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside, rows * width + columns, -1).flatten(1).long()


def _places(frames: Tensor) -> tuple[Tensor, Tensor, int, int]:
    height, width = frames.shape[-2:]
    return torch.arange(height)[None, :, None], torch.arange(width)[None, None, :], height, width


def _flipped(frames: Tensor, prob: float) -> Tensor:
    rows, columns, height, width = _places(frames)
    chosen = (torch.rand(frames.shape[1]) < prob)[:, None, None]
    return _index(rows, torch.where(chosen, width - 1 - columns, columns), height, width)


def _cropped(frames: Tensor, padding: int | None) -> Tensor:
    rows, columns, height, width = _places(frames)
    most = height // 12 if padding is None else padding
    shift = torch.randint(-most, most + 1, (2, frames.shape[1], 1, 1))
    return _index(rows + shift[0], columns + shift[1], height, width)


def _rolled(frames: Tensor, pixels: int | None, chosen: Tensor) -> Tensor:
    rows, columns, height, width = _places(frames)
    most = max(1, math.floor(height * 5 / 48)) if pixels is None else pixels
    shift = torch.randint(-most, most + 1, (2, frames.shape[1], 1, 1)) * chosen[:, None, None]
    return _index((rows - shift[0]) % height, (columns - shift[1]) % width, height, width)


def _turned(frames: Tensor, angle: Tensor, slant: Tensor) -> Tensor:
    """Rotation by `angle` (counter-clockwise) and shear along x by `slant`, degrees `[B]`, about the frame's centre."""
    rows, columns, height, width = _places(frames)
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    a, s = (torch.deg2rad(v)[:, None, None] for v in (angle, slant))
    x = x + torch.tan(s) * y
    from_x = torch.cos(a) * x - torch.sin(a) * y + (width - 1) / 2
    from_y = torch.sin(a) * x + torch.cos(a) * y + (height - 1) / 2
    return _index(from_y.round(), from_x.round(), height, width)


def _then(first: Tensor, second: Tensor) -> Tensor:
    """The map that does `first` and then `second`."""
    return torch.where(second < 0, -1, first.gather(1, second.clamp(min=0)))


def _move(frames: Tensor, source: Tensor) -> Tensor:
    """`out[..., i] = frames[..., source[b, i]]`, 0 where the source is −1."""
    source = source.to(frames.device)[None, :, None, :]
    flat = frames.flatten(-2)
    moved = flat.gather(-1, source.clamp(min=0).expand(flat.shape))
    return moved.masked_fill(source < 0, 0).view(frames.shape)
