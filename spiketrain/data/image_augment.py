"""Augmentation of image batches, on the device the batch is on: crop, flip, RandAugment, normalisation, erasing, mixing.

A batch is uint8 `[B,C,H,W]`; what comes out is float32, channels-last, and normalised. Random numbers are drawn from the
global generators of torch, numpy and random, which the training loop seeds before each batch. `rows` names the rows of the
batch that are wanted: they are what they would be in the whole batch, as everything is drawn for all of it.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from spiketrain.data.types import ALL, Rows
from spiketrain.errors import UserError


def crop_and_flip(images: Tensor, padding: int, flip: bool, rows: Rows = ALL, fill: str = "zero") -> Tensor:
    """Each image shifted by up to ±padding pixels, and mirrored with probability ½. `[B,C,H,W]`, one draw an image.

    fill: what comes in from outside, "zero" or "reflect": the image mirrored at its edge.
    """
    whole, device = len(images), images.device
    images = images[rows]
    b, _, h, w = images.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, whole, 1), device=device)[:, rows]
    columns = torch.arange(w, device=device).expand(b, w)
    if flip:
        mirrored = (torch.rand(whole, 1, device=device) < 0.5)[rows]
        columns = torch.where(mirrored, w - 1 - columns, columns)
    lines, columns = top + torch.arange(h, device=device), left + columns
    if fill == "reflect":
        if padding >= min(h, w):
            raise UserError(f"crop {padding} with crop_fill reflect needs images larger than that, not {h}×{w}: lower --crop")
        lines, columns = (_reflected(at - padding, side) for at, side in ((lines, h), (columns, w)))
    else:
        images = F.pad(images, (padding,) * 4)
    picked = images[torch.arange(b, device=device)[:, None, None], :, lines[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)  # the gather made it channels-last


def _reflected(at: Tensor, side: int) -> Tensor:
    """Places −side+1 … 2·side−2 mirrored at the first and last one."""
    return (side - 1) - ((side - 1) - at.abs()).abs()


def scaled(x: Tensor, side: int) -> Tensor:
    """`[B,C,H,W]` → `[B,C,side,side]`, each pixel a weighted mean (bilinear, antialiased); 0: x as it is."""
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True) if side not in (0, x.shape[-1]) else x


Operation = Callable[[Tensor, float], Tensor]
"""A batch and a signed level in −1…1 → the batch."""


def _affine(images: Tensor, x: float = 0.0, y: float = 0.0, shear_x: float = 0.0, shear_y: float = 0.0) -> Tensor:
    shift, shear = [round(x * images.shape[-1]), round(y * images.shape[-2])], [math.degrees(math.atan(s)) for s in (shear_x, shear_y)]
    return V.affine(images, 0.0, shift, 1.0, shear, fill=GREY[images.shape[1]])  # type: ignore[arg-type]


def _solarize_add(images: Tensor, level: float) -> Tensor:
    raised = (images.short() + int(abs(level) * 110)).clamp(max=255).to(images.dtype)
    return torch.where(images < 128, raised, images)


GREY = {1: [116], 2: [116, 116], 3: [124, 116, 104]}
OPERATIONS: dict[str, Operation] = {
    "AutoContrast": lambda x, _: V.autocontrast(x),
    "Equalize": lambda x, _: V.equalize(x),
    "Invert": lambda x, _: V.invert(x),
    "Rotate": lambda x, m: V.rotate(x, 30 * m, fill=GREY[x.shape[1]]),  # type: ignore[arg-type]
    "Posterize": lambda x, m: V.posterize(x, max(1, 4 - int(abs(m) * 4))),
    "Solarize": lambda x, m: V.solarize(x, 256 - int(abs(m) * 256)) if abs(m) > 0 else x,
    "SolarizeAdd": _solarize_add,
    "Color": lambda x, m: V.adjust_saturation(x, 1 + 0.9 * m) if x.shape[1] == 3 else x,
    "Contrast": lambda x, m: V.adjust_contrast(x, 1 + 0.9 * m) if x.shape[1] != 2 else x,
    "Brightness": lambda x, m: V.adjust_brightness(x, 1 + 0.9 * m),
    "Sharpness": lambda x, m: V.adjust_sharpness(x, 1 + 0.9 * m),
    "ShearX": lambda x, m: _affine(x, shear_x=0.3 * m),
    "ShearY": lambda x, m: _affine(x, shear_y=0.3 * m),
    "TranslateX": lambda x, m: _affine(x, x=0.45 * m),
    "TranslateY": lambda x, m: _affine(x, y=0.45 * m),
}
"""The fifteen operations of timm's RandAugment with increasing severity ("inc1"), by torchvision's functions."""


@dataclass(frozen=True)
class RandAugment:
    """`n` operations of the fifteen an image, each applied with probability ½, at a level N(m, mstd) of 10 (Cubuk et al. 2020).

    For speed the images that drew the same operation and sign share one level; in timm, which this follows, each has its own.
    """

    n: int = 2
    m: float = 9.0
    mstd: float = 0.0

    @staticmethod
    def parse(text: str) -> "RandAugment":
        """timm's notation: "rand-m9-mstd0.5-inc1", "rand-m9-n1-mstd0.4"; increasing severity (inc1) always."""
        found = dict(re.findall(r"-(mstd|inc|m|n)([0-9.]+)", text))
        if not re.fullmatch(r"rand(-(mstd|inc|m|n)[0-9.]+)+", text):
            raise UserError(f"randaugment {text!r}: write it as rand-m9-mstd0.5-inc1 (m: level of 10, n: operations, mstd: its deviation)")
        return RandAugment(int(found.get("n", 2)), float(found.get("m", 9)), float(found.get("mstd", 0)))

    def __call__(self, images: Tensor, whole: int = 0, rows: Rows = ALL) -> Tensor:
        """images: the `rows` of a batch of `whole` (0: it is the whole batch); written to."""
        names = list(OPERATIONS)
        for _ in range(self.n):
            drawn = torch.randint(0, 4 * len(names), (whole or len(images),))[rows].tolist()  # operation, sign, whether at all
            levels = (self.m + self.mstd * torch.randn(2 * len(names))).clamp(0, 10) / 10
            groups: dict[int, list[int]] = {}
            for i, choice in enumerate(drawn):
                groups.setdefault(choice, []).append(i)
            for choice, members in groups.items():
                if choice < 2 * len(names):
                    sign = 1.0 if choice % 2 else -1.0
                    index = torch.tensor(members, device=images.device)
                    images[index] = OPERATIONS[names[choice // 2]](images[index], sign * float(levels[choice]))
        return images


@dataclass(frozen=True)
class ImageAugment:
    """What is done to a training batch, in this order; `mean` and `std` a channel, of pixels in 0…1, normalise test batches too.

    crop: padding in pixels (0: none), crop_fill: see `crop_and_flip`; flip; randaugment in timm's notation ("": none); erase:
    probability of random erasing, erase_mode "pixel" or "const"; mixup and cutmix: the Beta parameters (0: off), mix_prob: of mixing.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    crop: int = 0
    flip: bool = False
    randaugment: str = ""
    erase: float = 0.0
    erase_mode: str = "pixel"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    smoothing: float = 0.0
    crop_fill: str = "zero"

    def __post_init__(self) -> None:
        if self.randaugment:
            RandAugment.parse(self.randaugment)
        if self.erase_mode not in ("pixel", "const", "rand"):
            raise UserError(f"erase_mode must be pixel, const or rand, not {self.erase_mode!r}")
        if self.crop_fill not in ("zero", "reflect"):
            raise UserError(f"crop_fill must be zero or reflect, not {self.crop_fill!r}")

    def plain(self, images: Tensor) -> Tensor:
        """uint8 `[B,C,H,W]` → float, channels-last, normalised."""
        b, c, h, w = images.shape
        mean = torch.tensor(self.mean, device=images.device) * 255
        scale = 1 / (torch.tensor(self.std, device=images.device) * 255)
        rows = images.permute(0, 2, 3, 1).reshape(b * h, w * c)  # long rows: a loop over three channels at a time is slow
        return rows.to(torch.float32, copy=True).sub_(mean.repeat(w)).mul_(scale.repeat(w)).view(b, h, w, c).permute(0, 3, 1, 2)

    def train(self, images: Tensor, labels: Tensor, mix: bool = True, rows: Rows = ALL) -> tuple[Tensor, Tensor]:
        """The `rows` of a training batch; labels come back as they are `[B]`, or as weights `[B,K]` where mixing is on.

        Where samples are erased or mixed, all of them are augmented first: the libraries that do it draw as they go along.
        """
        whole, mixing = len(images), mix and (self.mixup or self.cutmix) and len(images) > 1
        early, late = (ALL, rows) if self.erase or mixing else (rows, ALL)
        images = crop_and_flip(images, self.crop, self.flip, early, self.crop_fill) if self.crop or self.flip else images[early]
        labels = labels[early]
        if self.randaugment:
            images = RandAugment.parse(self.randaugment)(images.contiguous(), whole, early)
        x = self.plain(images)
        if self.erase:
            x = RandomErasing(self.erase, mode=self.erase_mode, device=x.device)(x)
        if mixing:
            even = len(x) // 2 * 2  # the library mixes pairs: of an odd batch the last one stays as it is
            mixer = Mixup(self.mixup, self.cutmix, prob=self.mix_prob, label_smoothing=self.smoothing, num_classes=self.classes)
            _, weights = mixer(x[:even], labels[:even])
            rest = F.one_hot(labels[even:], self.classes).to(weights.dtype)
            labels = torch.cat((weights, rest))
        return x[late], labels[late]
