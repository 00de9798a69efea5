"""Weights that a network begins with: convolutions that pass on, a stem that whitens."""

import torch
from torch import Tensor, nn

from spiketrain.errors import UserError
from spiketrain.models import Network

IMAGES = 5000
"""So many training images are looked at."""
MOST_PIXELS = 8 << 20
"""Fewer images where they are large: their patches are held in float64."""
EPSILON = 5e-4
"""Added to the variances, so that directions in which images hardly vary are not blown up."""


def sample(images: Tensor, labels: Tensor) -> Tensor:
    """The first `IMAGES`; or as many evenly spaced where the set lies class after class, as folders do."""
    if len(labels[:IMAGES].unique()) == len(labels.unique()):
        return images[:IMAGES]
    return images[:: max(1, len(images) // IMAGES)][:IMAGES]


@torch.no_grad()
def dirac(network: nn.Module) -> None:
    """Every convolution but the first hands its input channels on to its first output channels; the others stay as they were drawn.

        w[i, j] = 1 at its centre where i = j, else 0, for i below the number of inputs

    Source: K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, section 3.3; Zagoruyko and Komodakis 2017.
    """
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    for conv in convolutions[1:]:
        shared = min(conv.in_channels, conv.out_channels)
        nn.init.dirac_(conv.weight[:shared])


@torch.no_grad()
def whiten(network: Network, images: Tensor) -> None:
    """Sets the first convolution so that patches of the images come out uncorrelated and of variance 1; freezes it.

    Rows are e/√(λ + ε) for every eigenvector e, of eigenvalue λ, of the patches' covariance; the bias is zero: behind a linear stem the
    next norm takes a constant out again, and so no gradient need go back to the pixels. images: `[N,C,H,W]`, normalised. `UserError`
    where the convolution has not C·k² outputs. Source: as `dirac`, section 3.2, without the negative of each row.
    """
    conv = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is None:
        raise UserError("whiten needs a network that begins with a convolution: set it off")
    side = conv.kernel_size[0]
    count = conv.in_channels * side * side
    if conv.out_channels != count or conv.in_channels != images.shape[1]:
        raise UserError(f"whiten needs a stem with {count} channels (fast_convnet, fast_convnet4), not {conv.out_channels}: set it off")
    images = images[: max(1, MOST_PIXELS // (images.shape[-1] * images.shape[-2]))]
    patches = images.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, count).double()
    variances, directions = torch.linalg.eigh(torch.cov(patches.T))
    rows = (directions / (variances + EPSILON).sqrt()).T.flip(0).to(conv.weight.dtype).view(count, *conv.weight.shape[1:])
    conv.weight.copy_(rows)
    if conv.bias is not None:
        conv.bias.zero_()
    conv.requires_grad_(False)
