"""What is seen of an image of any size: a random part in training, the middle in tests, as a square of `size` pixels.

The geometry is timm's and torchvision's (Szegedy et al. 2015: a part of 8–100 % of the area, of aspect 3/4–4/3); crop and scaling are
one step on the decoded bytes, with antialiasing, and colours change by timm's own transforms.
"""

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor

from spiketrain.errors import UserError, unknown

BY_TENSOR = ("bilinear", "bicubic")
BY_PILLOW = {
    "nearest": Image.Resampling.NEAREST, "box": Image.Resampling.BOX, "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}  # fmt: skip
INTERPOLATIONS = (*BY_TENSOR, *BY_PILLOW)


@dataclass(frozen=True)
class View:
    """size: side in pixels of what the network gets.

    Training: area and aspect (height and width apart) of the random part, interpolation ("random": bilinear or bicubic), mirroring with
    probability flip (left-right) and vertical_flip, jitter of brightness, contrast and saturation by up to this share, augment: a policy
    in timm's notation ("rand-m9-mstd0.5-inc1", "augmix-m3", "original"); random_crop off: as in tests.
    Tests: the shorter side is scaled to size / test_crop by test_interpolation, and the middle is taken.
    """

    size: int
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "random"
    flip: float = 0.5
    vertical_flip: float = 0.0
    jitter: float = 0.0
    augment: str = ""
    random_crop: bool = True
    test_crop: float = 0.875
    test_interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        for name, low in (("area", 0.0), ("aspect", 0.0)):
            pair = getattr(self, name)
            if len(pair) != 2 or not low < pair[0] <= pair[1] or (name == "area" and pair[1] > 1):
                raise UserError(f"{name} must be two numbers, the smaller first and both above 0{', at most 1' * (name == 'area')}: {pair}")
        if not 0 < self.test_crop <= 1:
            raise UserError(f"test_crop must be above 0 and at most 1, not {self.test_crop}")
        if self.interpolation not in ("random", *INTERPOLATIONS):
            raise unknown("interpolation", self.interpolation, ("random", *INTERPOLATIONS))
        if self.test_interpolation not in INTERPOLATIONS:
            raise unknown("test_interpolation", self.test_interpolation, INTERPOLATIONS)
        self._colours()

    def train(self, image: Tensor, numbers: tuple[int, ...]) -> Tensor:
        """A training view `[3,size,size]` of an image `[3,H,W]`, both uint8; what is random follows from `numbers` alone."""
        random.seed(repr(numbers))  # timm draws from Python's own generator
        if self.random_crop:
            kind = random.choice(BY_TENSOR) if self.interpolation == "random" else self.interpolation
            top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.area, self.aspect)
            x = _scaled(image[:, top : top + height, left : left + width], self.size, self.size, kind)
        else:
            x = self.plain(image)
        axes = [axis for axis, share in ((-1, self.flip), (-2, self.vertical_flip)) if share and random.random() < share]
        x = x.flip(axes) if axes else x
        change = self._colours()
        return x if change is None else _recoloured(x, change)

    def plain(self, image: Tensor) -> Tensor:
        """The middle, `[3,size,size]`, of an image `[3,H,W]`, both uint8."""
        short = int(self.size / self.test_crop)
        height, width = image.shape[-2:]
        if height < width:
            height, width = short, int(short * width / height)
        else:
            height, width = int(short * height / width), short
        if max(height, width) > 64 * short:  # a strip of pixels: scaled it would be an image of any size
            raise UserError(f"an image of {image.shape[-1]}×{image.shape[-2]} pixels is too narrow for a square view: remove it")
        x = _scaled(image, height, width, self.test_interpolation)
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return x[:, top : top + self.size, left : left + self.size]

    def _colours(self) -> Callable[[Image.Image], Image.Image] | None:
        return _colour_transform(self.size, self.jitter, self.augment)


def _recoloured(x: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    torch.manual_seed(random.getrandbits(63))  # timm's and torchvision's transforms draw from all three generators
    np.random.seed(random.getrandbits(32))
    picture = Image.fromarray(np.ascontiguousarray(x.permute(1, 2, 0).numpy()))
    return torch.from_numpy(np.array(change(picture))).permute(2, 0, 1)


@functools.cache
def _colour_transform(size: int, jitter: float, augment: str) -> Callable[[Image.Image], Image.Image] | None:
    """timm's secondary transforms; None where they are none."""
    if not jitter and not augment:
        return None
    try:
        _, change, _ = transforms_imagenet_train(size, color_jitter=jitter, auto_augment=augment or None, separate=True)
    except (AssertionError, ValueError, KeyError, TypeError, IndexError) as error:  # what timm says to a policy that it does not know
        raise UserError(f"randaugment {augment!r}: not one of timm's policies, such as rand-m9-mstd0.5-inc1") from error
    return change  # type: ignore[no-any-return]


def _scaled(image: Tensor, height: int, width: int, kind: str) -> Tensor:
    """uint8 `[3,H,W]` → `[3,height,width]`."""
    if kind in BY_TENSOR:  # a part that lies together is scaled in half the time
        whole = image[None].contiguous(memory_format=torch.channels_last)
        return F.interpolate(whole, (height, width), mode=kind, antialias=True, align_corners=False)[0]
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    return torch.from_numpy(np.array(picture.resize((width, height), BY_PILLOW[kind]))).permute(2, 0, 1)
