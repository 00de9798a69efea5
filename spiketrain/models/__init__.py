"""Networks by name: `build(name, ...)`."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import nn

from spiketrain.errors import UserError, unknown
from spiketrain.layers import ENCODERS, NormSpec
from spiketrain.models import convnet, membrane, resnet, vgg
from spiketrain.models.network import Network, Plan, count_macs, count_parameters
from spiketrain.neurons import NEURONS, Leaky, Spec
from spiketrain.saving import MEMORY

MODELS: dict[str, Callable[[Plan], nn.Module]] = {
    body.__name__: body
    for body in (
        convnet.cifar_convnet,
        convnet.dvs_convnet,
        convnet.dvs_convnet7,
        convnet.digits_convnet,
        convnet.mnist_convnet,
        convnet.small_convnet,
        convnet.fast_convnet,
        convnet.fast_convnet4,
        resnet.resnet9,
        resnet.resnet18,
        resnet.resnet18_pooled,
        resnet.resnet18_imagenet,
        resnet.resnet34,
        resnet.resnet34_imagenet,
        resnet.resnet50,
        resnet.resnet50_imagenet,
        membrane.ms_resnet18,
        membrane.max_resnet18,
        membrane.max_resnet18_wide,
        vgg.vgg_snn,
    )
}
"""Every model by its name; the first line of a function's docstring says what it is."""


FILE = ".py:"


def load_file(spec: str) -> None:
    """Adds the network of a user's own file, `path.py:function`, to `MODELS` under that name. This runs the file's code.

    The function takes a `Plan` and returns a module from `[T,B,C,H,W]` to logits `[T,B,K]`. Called only for what a user names
    on their own command line, never for a name that stands in a record or a checkpoint. Raises `UserError` where it fails.
    """
    path, _, function = spec.rpartition(":")
    found = importlib.util.spec_from_file_location("spiketrain_user_model", path)
    if found is None or found.loader is None or not Path(path).is_file():
        raise UserError(f"model {spec}: there is no file {path}; FILE.py:FUNCTION is expected")
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as error:  # whatever the user's code raises
        raise UserError(f"model {spec}: {path} does not load ({type(error).__name__}: {error})") from error
    if not callable(getattr(module, function, None)):
        raise UserError(f"model {spec}: {path} has no function {function}")
    MODELS[spec] = getattr(module, function)


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
    memory: str = "speed",
    levels: int = 4,
    through_time: bool = True,
) -> Network:
    """The network of that name.

    name: `MODELS`; neuron: `neurons.NEURONS`, with tau … kernel and through_time as `neurons.Leaky` and `neurons.LIF` have them; norm:
    `layers.NORMS`; steps: T of static images; width: factor on all channels; encoder: `layers.ENCODERS`; flatten_time: see
    `Network`; memory: `saving.MEMORY`, what is kept for the backward pass; levels: of `ilif`. Raises `UserError` with the
    nearest match where a name is unknown.

    >>> build("resnet18", neuron="lif", surrogate="atan", steps=4).steps
    4
    """
    if FILE in name and name not in MODELS:
        raise UserError(f"model {name} is a file with code: name it again (--model {name}) to run it")
    names = (("model", name, MODELS), ("neuron", neuron, NEURONS), ("encoder", encoder, ENCODERS), ("memory", memory, MEMORY))
    for kind, value, known in names:
        if value not in known:
            raise unknown(kind, value, known)
    spec = Spec(neuron, tau, threshold, surrogate, alpha, reset, detach, strict, learn_threshold, learn_alpha, kernel, levels, through_time)
    if memory != "speed" and not issubclass(NEURONS[neuron], Leaky):
        raise UserError(f"memory {memory!r} keeps an output as one bit, and those of neuron {neuron} are no spikes: take --memory speed")
    channels = in_channels * steps if flatten_time else in_channels
    norms = NormSpec(norm, threshold, 1 if flatten_time else steps)
    body = MODELS[name](Plan(spec, norms, channels, num_classes, width, memory))
    return Network(body, in_channels, steps, encoder, flatten_time)


__all__ = ["FILE", "MODELS", "Network", "Plan", "build", "count_macs", "count_parameters", "load_file"]
