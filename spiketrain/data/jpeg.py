"""Encoded images → uint8 tensors: JPEG by torchvision's decoder, all else by Pillow. A claimed size is checked first."""

import io
import warnings

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from spiketrain.errors import UserError

MOST_PIXELS = 89_478_485
"""An image of more is refused: a few hundred bytes can claim any size. It is Pillow's own limit, 268 MB as RGB."""

_ALONE = {0x01, *range(0xD0, 0xD8)}  # markers without a length: TEM, RST0 … RST7
_NO_FRAME = {0xC4, 0xC8, 0xCC}  # DHT, JPG, DAC: among the numbers of the frame headers, but none


def frame_size(data: bytes) -> tuple[int, int, int] | None:
    """(width, height, components) that a JPEG's frame header states (ITU-T T.81, B.2.2), or None where there is none."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in _ALONE:  # a fill byte; a marker without content
            at += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            return data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6], data[at + 9] if at + 9 < len(data) else 0
        if marker in (0xD9, 0xDA):  # end of image, start of scan
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def decode(data: bytes, title: str) -> Tensor:
    """RGB uint8 `[3,H,W]`, channels last in memory, of a JPEG (grey, CMYK, progressive too) or any image that Pillow reads.

    `UserError` with `title`, the image's file, in front where it is broken, or larger than `MOST_PIXELS`.
    """
    size = frame_size(data)
    if size and size[0] * size[1] > MOST_PIXELS:
        raise UserError(f"{title}: not an image to train on: it claims {size[0]:,}×{size[1]:,} pixels; replace or remove it")
    if size and size[2] in (1, 3):
        try:
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        except (RuntimeError, ValueError):
            pass  # Pillow takes some that the other refuses, and says what is wrong where it does not
    pixels = np.array(_by_pillow(data, title))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _by_pillow(data: bytes, title: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise UserError(f"{title}: not an image to train on: it claims {image.width:,}×{image.height:,} pixels; remove it")
                return image.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # what Pillow's forty decoders raise on broken data is not listed anywhere
        why = str(error).splitlines()[0].replace("<_io.BytesIO object", "<data") if str(error) else type(error).__name__
        raise UserError(f"{title}: not a whole image ({why[:100]}): replace or remove it") from error
