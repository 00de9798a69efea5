"""Image data sets by name, held whole as uint8: scikit-learn's digits, torchvision's, and folders of images."""

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from spiketrain.data.types import DataSet, Split
from spiketrain.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
MOST_BYTES = 16 << 30
"""A folder whose images would take more memory than this is refused."""


@dataclass(frozen=True)
class ImageSet:
    """One entry: where it comes from and what the files are called. `load(root, download)` returns it whole."""

    name: str
    title: str
    page: str
    licence: str
    citation: str
    layout: str
    load: Callable[[Path, bool], DataSet]


def fingerprint(inputs: Tensor, labels: Tensor) -> str:
    """SHA-256 of shape, pixels and labels, as hexadecimal text."""
    digest = hashlib.sha256(str(tuple(inputs.shape)).encode())
    for part in (inputs, labels):
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def statistics(inputs: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images `[N,C,H,W]`, scaled to 0…1, to four digits."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in inputs.unbind(1):
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = float((share * levels).sum())
        means.append(round(mean, 4))
        stds.append(round(max(float((share * levels**2).sum()) - mean**2, 1e-8) ** 0.5, 4))
    return tuple(means), tuple(stds)


Pair = tuple[Tensor, Tensor]
"""Images `[N,C,H,W]` and labels `[N]`."""


def in_memory(name: str, train: Pair, test: Pair, classes: Sequence[str], split: str = "official") -> DataSet:
    """A `DataSet` of uint8 images `[N,C,H,W]` and int64 labels, with the training images' own statistics."""
    for part, (images, labels) in (("training", train), ("test", test)):
        good = images.dtype == torch.uint8 and images.dim() == 4 and labels.dim() == 1 and len(images) == len(labels) > 0
        if not good or images.shape[1:] != train[0].shape[1:] or not images.numel():
            shapes = f"{list(images.shape)} and {list(labels.shape)}"
            raise UserError(f"data set {name}: images and labels of the {part} part do not fit each other ({shapes}): copy it again")
    mean, std = statistics(train[0])
    parts = [Split(inputs, labels, fingerprint(inputs, labels)) for inputs, labels in (train, test)]
    return DataSet(name, parts[0], parts[1], tuple(classes), mean, std, split)


def _digits(root: Path, download: bool) -> DataSet:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target).long()
    test = torch.arange(len(labels)) % 5 == 4
    return in_memory("digits", (images[~test], labels[~test]), (images[test], labels[test]), "0123456789", "index-mod-5")


def _torchvision(name: str, kind: str, layout: str) -> Callable[[Path, bool], DataSet]:
    """A loader of one of torchvision's sets.

    The pickles of CIFAR are opened only where their MD5 is the official one; the idx files of MNIST are plain numbers.
    """

    def load(root: Path, download: bool) -> DataSet:
        from torchvision import datasets

        source = getattr(datasets, kind)
        if (root / kind / "processed").exists():  # torchvision would read these instead, and they are not the official files
            raise UserError(f"data set {name}: {root / kind / 'processed'} is of an old version: remove it, and keep {layout}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                train, test = (source(str(root), train=part, download=download) for part in (True, False))
        except Exception as error:  # what the library raises depends on what is wrong: absent, damaged, no network
            absent = f"data set {name} is not whole in {root}: put {layout} there"
            if download:
                raise UserError(f"{absent} (the download failed: {(str(error) or type(error).__name__).splitlines()[0]})") from error
            raise UserError(f"{absent}, name its folder with --data-root, or add --download") from error
        return in_memory(name, _pixels(train), _pixels(test), train.classes)

    return load


def _pixels(source: object) -> tuple[Tensor, Tensor]:
    images = torch.as_tensor(source.data)  # type: ignore[attr-defined]
    images = images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()
    return images, torch.as_tensor(source.targets).long()  # type: ignore[attr-defined]


IMAGE_SETS: dict[str, ImageSet] = {
    entry.name: entry
    for entry in (
        ImageSet(
            "digits", "Optical recognition of handwritten digits, 8×8", "comes with scikit-learn", "CC BY 4.0",
            "E. Alpaydin, C. Kaynak, 1998", "nothing to put anywhere", _digits),
        ImageSet(
            "cifar10", "CIFAR-10", "https://www.cs.toronto.edu/~kriz/cifar.html", "none stated",
            "A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009", "cifar-10-batches-py/",
            _torchvision("cifar10", "CIFAR10", "cifar-10-batches-py/ (from https://www.cs.toronto.edu/~kriz/cifar.html)")),
        ImageSet(
            "cifar100", "CIFAR-100", "https://www.cs.toronto.edu/~kriz/cifar.html", "none stated",
            "A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009", "cifar-100-python/",
            _torchvision("cifar100", "CIFAR100", "cifar-100-python/ (from https://www.cs.toronto.edu/~kriz/cifar.html)")),
        ImageSet(
            "mnist", "MNIST", "https://yann.lecun.org/exdb/mnist/", "usually given as CC BY-SA 3.0",
            "Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, 1998", "MNIST/raw/*-ubyte",
            _torchvision("mnist", "MNIST", "MNIST/raw/ with its four idx files")),
        ImageSet(
            "fashion", "Fashion-MNIST", "https://github.com/zalandoresearch/fashion-mnist", "MIT",
            "H. Xiao, K. Rasul, R. Vollgraf, 2017", "FashionMNIST/raw/*-ubyte",
            _torchvision("fashion", "FashionMNIST", "FashionMNIST/raw/ with its four idx files")),
    )
}  # fmt: skip
"""Every image data set by its name."""


def is_image_folder(folder: Path) -> bool:
    """True where a folder's class folders (or those of its train/) hold an image, or hold nothing at all."""
    base = folder / "train" if (folder / "train").is_dir() else folder
    subfolders = _subfolders(base)
    files = [f for sub in subfolders for f in list(_files(sub))[:1]]
    return bool(subfolders) and all(f.suffix.lower() in IMAGE_SUFFIXES for f in files)


def load_folder(folder: Path, size: int = 0) -> DataSet:
    """Images of any common format, one subfolder a class; train/ and test/ (or val/) where they exist, else every fifth image is test.

    size: side in pixels of the square that each image is scaled (shorter side) and cropped (middle) to; 0 where all have one
    size already. Class order and file order are those of the names.
    """
    parts = [folder / "train", next((folder / p for p in ("test", "val") if (folder / p).is_dir()), folder / "test")]
    if all(p.is_dir() for p in parts):
        classes = [c.name for c in _subfolders(parts[0])]
        strangers = {c.name for c in _subfolders(parts[1])} - set(classes)
        if strangers:
            raise UserError(f"{parts[1]}: class folder {min(strangers)!r} is not in {parts[0]}")
        train, test = (_read_classes(part, classes, size) for part in parts)
        return in_memory(folder.resolve().name, train, test, classes, "folders")
    classes = [c.name for c in _subfolders(folder)]
    images, labels = _read_classes(folder, classes, size)
    chosen = torch.arange(len(labels)) % 5 == 4
    pair = ((images[~chosen], labels[~chosen]), (images[chosen], labels[chosen]))
    return in_memory(folder.resolve().name, *pair, classes, "index-mod-5")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_file() and not f.name.startswith("."))


def _read_classes(base: Path, classes: Sequence[str], size: int) -> tuple[Tensor, Tensor]:
    if not classes:
        raise UserError(f"{base}: no subfolders: one a class is expected")
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = [f for f in _files(base / name) if f.suffix.lower() in IMAGE_SUFFIXES] if (base / name).is_dir() else []
        if not found:
            raise UserError(f"{base / name}: no image in this class folder ({' '.join(IMAGE_SUFFIXES)})")
        files += found
        labels += [label] * len(found)
    first = read_image(files[0], size)
    if first.nbytes * len(files) > MOST_BYTES:
        raise UserError(f"{base}: {len(files)} images of {first.shape} do not fit in memory: choose a smaller --image-size")
    images = np.empty((len(files), *first.shape), np.uint8)
    for i, file in enumerate(files):
        image = read_image(file, size)
        if image.shape != first.shape:
            here, others = (f"{a.shape[1]}×{a.shape[0]}" for a in (image, first))
            raise UserError(f"{file}: {here} pixels, others have {others}: set --image-size")
        images[i] = image
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def read_image(file: str | os.PathLike[str], size: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """One image as RGB `[H,W,3]` uint8, scaled and cropped to size × size where size > 0; `UserError` where it cannot be decoded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                picture = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{file}: not a whole image ({error}): replace or remove it") from error
    if size:
        scale = size / min(picture.size)
        sides = [max(size, round(side * scale)) for side in picture.size]
        scaled = picture.resize((sides[0], sides[1]), Image.Resampling.BILINEAR)
        left, top = (scaled.width - size) // 2, (scaled.height - size) // 2
        picture = scaled.crop((left, top, left + size, top + size))
    return np.asarray(picture)
