"""Networks by name: `build(name, ...)`."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from spiketrain.errors import unknown
from spiketrain.layers import ENCODERS
from spiketrain.models import convnet, resnet
from spiketrain.models.network import Network, Plan, count_macs, count_parameters
from spiketrain.neurons import NEURONS, Spec

MODELS: dict[str, Callable[[Plan], nn.Module]] = {
    body.__name__: body
    for body in (
        convnet.cifar_convnet,
        convnet.dvs_convnet,
        convnet.dvs_convnet7,
        convnet.digits_convnet,
        convnet.mnist_convnet,
        convnet.small_convnet,
        resnet.resnet9,
        resnet.resnet18,
        resnet.resnet18_pooled,
        resnet.resnet18_imagenet,
        resnet.resnet34,
        resnet.resnet34_imagenet,
        resnet.resnet50,
        resnet.resnet50_imagenet,
    )
}
"""Every model by its name; the first line of a function's docstring says what it is."""


def build(
    name: str,
    *,
    neuron: str = "lif",
    tau: float = 2.0,
    threshold: float = 1.0,
    surrogate: str = "atan",
    alpha: float | None = None,
    reset: Literal["hard", "soft"] = "hard",
    detach: bool = True,
    strict: bool = False,
    learn_threshold: bool = False,
    learn_alpha: bool = False,
    kernel: str = "auto",
    norm: str = "time",
    in_channels: int = 3,
    num_classes: int = 10,
    steps: int = 4,
    width: float = 1.0,
    encoder: str = "direct",
    flatten_time: bool = False,
) -> Network:
    """The network of that name.

    name: `MODELS`; neuron: `neurons.NEURONS`, with tau … kernel as `neurons.Leaky` and `neurons.LIF` have them; norm:
    `layers.NORMS`; steps: T of static images; width: factor on all channels; encoder: `layers.ENCODERS`; flatten_time: see
    `Network`. Raises `UserError` with the nearest match where a name is unknown.

    >>> build("resnet18", neuron="lif", surrogate="atan", steps=4).steps
    4
    """
    for kind, value, known in (("model", name, MODELS), ("neuron", neuron, NEURONS), ("encoder", encoder, ENCODERS)):
        if value not in known:
            raise unknown(kind, value, known)
    spec = Spec(neuron, tau, threshold, surrogate, alpha, reset, detach, strict, learn_threshold, learn_alpha, kernel)
    channels = in_channels * steps if flatten_time else in_channels
    body = MODELS[name](Plan(spec, norm, channels, num_classes, width))
    return Network(body, in_channels, steps, encoder, flatten_time)


__all__ = ["MODELS", "Network", "Plan", "build", "count_macs", "count_parameters"]
