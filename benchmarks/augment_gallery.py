"""Draws docs/img/augmentations.png: every augmentation on the same recording, a digit before the simulated camera.

    python benchmarks/augment_gallery.py [--out docs/img/augmentations.png]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from torch import Tensor

from spiketrain.data.event_augment import AUGMENTATIONS, Augmentation
from spiketrain.data.event_mix import MIXES, soft
from spiketrain.data.events import to_frames
from spiketrain.data.show import INK, coloured
from spiketrain.data.simulate import Camera, simulate

STEPS, TILE, GAP, LABEL = 6, 96, 4, 150
SHEET = (40, 43, 50)


def recording(digit: int) -> Tensor:
    """Frames `[T,2,48,48]` of one of scikit-learn's digits."""
    image = np.pad((load_digits().images[digit] * (255 / 16)).round().astype(np.uint8), 2)
    seen = simulate(image, Camera(zoom=3.5, noise=0.2), seed=digit)
    assert seen.size is not None
    return torch.from_numpy(to_frames(seen.events, STEPS, seen.size)).float()


def strong(function: Augmentation, frames: Tensor) -> Tensor:
    """What an augmentation makes of the frames with the first seed of which one can see it."""
    outs = []
    for seed in range(20):
        torch.manual_seed(seed)
        outs.append(function(frames)[:, 0])
    changes = [float((out - frames[:, 0]).abs().sum()) for out in outs]
    return next(out for out, change in zip(outs, changes, strict=True) if change >= 0.7 * max(changes))


def rows() -> list[tuple[str, Tensor]]:
    """Name and frames `[T,2,H,W]` of each row."""
    frames = torch.stack([recording(13), recording(10)], 1)
    out = [("original", frames[:, 0]), ("its partner in a mix", frames[:, 1])]
    for name, function in AUGMENTATIONS.items():
        out.append((name, strong(function, frames)))
    labels = soft(torch.tensor([3, 0]), 10)
    for name, mix in MIXES.items():
        for seed in range(1000):  # the first that mixes the sample with the other one, to a fair share
            torch.manual_seed(seed)
            mixed, shares = mix(frames, labels)
            if 0.35 < float(shares[0, 3]) < 0.65:
                break
        out.append((f"{name}\n{float(shares[0, 3]):.2f} of 3, {float(shares[0, 0]):.2f} of 0", mixed[:, 0]))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "img" / "augmentations.png")
    out: Path = parser.parse_args().out
    entries = rows()
    half = -(-len(entries) // 2)
    width = LABEL + STEPS * (TILE + GAP)
    sheet = Image.new("RGB", (2 * width + 3 * GAP, half * (TILE + GAP) + 24), SHEET)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP * 2, 4), "time goes to the right; on orange, off blue", INK, ImageFont.load_default(12))
    for i, (name, frames) in enumerate(entries):
        x, y = (i // half) * (width + GAP) + GAP, (i % half) * (TILE + GAP) + 24
        draw.text((x + GAP, y + TILE // 2 - 10), name, INK, ImageFont.load_default(14))
        for t, tile in enumerate(coloured(frames.numpy())):
            sheet.paste(tile.resize((TILE, TILE), Image.Resampling.NEAREST), (x + LABEL + t * (TILE + GAP), y))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, optimize=True)
    print(out)


if __name__ == "__main__":
    main()
