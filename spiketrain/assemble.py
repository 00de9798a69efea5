"""What a recipe means on this machine: device, precision, data, network, optimiser."""

import os
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from torch import nn

from spiketrain import initial, kernels, models, optimizers
from spiketrain.data import sets
from spiketrain.data.event_prepare import EventPrepare
from spiketrain.data.image_augment import ImageAugment
from spiketrain.data.loader import Loader, Prepare
from spiketrain.data.types import DataSet
from spiketrain.data.view import View
from spiketrain.errors import UserError, unknown
from spiketrain.models import Network
from spiketrain.neurons import Leaky
from spiketrain.recipes import Recipe

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def choose_device(name: str) -> torch.device:
    """ "auto" is the first GPU, or the processor; `UserError` for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:1")) from None
    if device.type not in ("cpu", "cuda"):
        raise unknown("device", name, ("auto", "cpu", "cuda", "cuda:1"))
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: this machine has {torch.cuda.device_count()} GPUs; --device cpu or auto will do")
    return device


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether convolutions run in bfloat16; "auto" where the device is fast at it: CUDA, AMX, AVX512-BF16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu
    return bool(cpu._is_amx_tile_supported() or cpu._is_avx512_bf16_supported())


def slow_neurons(network: nn.Module, device: torch.device, bf16: bool) -> str:
    """A line for the user where the network's neurons have no fast kernel here, as they would on another machine; else empty."""
    rules = {m.rule for m in network.modules() if isinstance(m, Leaky) and m.kernel == "auto"}
    if device.type != "cpu" or not rules:
        return ""
    return kernels.fallback(rules.pop(), torch.bfloat16 if bf16 else torch.float32)


def load_data(recipe: Recipe, root: str | Path | None, download: bool = False) -> DataSet:
    """The recipe's data; `UserError` where they do not fit its number of classes."""
    data = sets.load(
        recipe.data,
        root,
        download=download,
        image_size=recipe.image_size,
        view=make_view(recipe),
        stream=recipe.stream,
        workers=recipe.workers,
        steps=recipe.steps,
        event_size=recipe.event_size,
        split=recipe.split,
        frames_by=recipe.frames_by,
        frame_kind=recipe.frame_kind,
        frame_window=recipe.frame_window,
        frame_resize=recipe.frame_resize,
    )
    worst = max(int(part.labels.max()) for part in (data.train, data.test))
    if recipe.classes and worst >= recipe.classes:
        raise UserError(f"data set {data.name} has a label {worst}, but classes is {recipe.classes}: set it to {len(data.classes)} or 0")
    return data


def make_view(recipe: Recipe) -> View:
    """How images that stream are seen; `UserError` where the recipe's fields do not fit each other."""
    return View(
        recipe.image_size or 224, _pair(recipe, "area"), _pair(recipe, "aspect"), recipe.interpolation, recipe.flip * recipe.flip_share,
        recipe.vertical_flip, recipe.color_jitter, recipe.randaugment, recipe.random_crop, recipe.test_crop, recipe.test_interpolation,
    )  # fmt: skip


def _pair(recipe: Recipe, name: str) -> tuple[float, float]:
    values = getattr(recipe, name)
    if len(values) != 2:
        raise UserError(f"{name} must be two numbers, the smallest and the largest, not {len(values)}")
    return values[0], values[1]


def network_classes(recipe: Recipe, data: DataSet) -> int:
    """How many logits the network has."""
    return recipe.classes or len(data.classes)


def make_prepare(recipe: Recipe, data: DataSet) -> Prepare:
    """What makes a network's input of the stored bytes of this data set."""
    if data.train.framed:
        return EventPrepare(
            network_classes(recipe, data), recipe.event_augment, recipe.event_mix_beta, recipe.event_mix_prob, recipe.event_mix_count,
            recipe.event_mix_components, recipe.event_randaug_n, recipe.event_randaug_m,
        )  # fmt: skip
    if recipe.event_augment:
        raise UserError(f"event_augment is for event data, and {data.name} has images: leave it empty")
    channels = data.sample_shape[0]
    mean, std = data.mean, data.std
    if recipe.normalize == "imagenet" and channels == len(IMAGENET[0]):
        mean, std = IMAGENET
    for name in ("mean", "std"):
        if getattr(recipe, name) and len(getattr(recipe, name)) != channels:
            raise UserError(f"{name} has {len(getattr(recipe, name))} values, and the images of {data.name} {channels} channels")
    mean, std = recipe.mean or mean, recipe.std or std
    if recipe.normalize == "none" or recipe.encoder != "direct":  # encoders take intensities in 0…1
        mean, std = (0.0,) * channels, (1.0,) * channels
    crop, flip, policy = recipe.crop, recipe.flip and recipe.flip_by == "random", recipe.randaugment
    if data.train.stream:  # its view has cropped, mirrored and recoloured it
        crop, flip, policy = 0, False, ""
    return ImageAugment(
        mean, std, network_classes(recipe, data), crop, flip, policy, recipe.erase, recipe.erase_mode, recipe.mixup, recipe.cutmix,
        recipe.mix_prob, recipe.smoothing, recipe.crop_fill,
    )  # fmt: skip


def make_loader(recipe: Recipe, data: DataSet, device: torch.device) -> Loader:
    """The recipe's batches."""
    if recipe.flip and recipe.flip_by == "turn" and (data.train.stream or data.train.framed):
        raise UserError("flip_by 'turn' is for images that are held in memory: set it to random")
    if recipe.curriculum and data.train.framed:
        raise UserError("curriculum is for images, and event frames have a T of their own: leave it empty")
    if recipe.train_sides and (data.train.framed or data.sample_shape[1:] != (recipe.train_sides[-1],) * 2):
        size = "×".join(map(str, data.sample_shape[1:]))
        what = "event frames, which keep their size" if data.train.framed else f"images of {size} pixels"
        raise UserError(f"train_sides must end with the side of square images, and {data.name} has {what}")
    return Loader(
        data, make_prepare(recipe, data), recipe.batch_size, recipe.eval_batch_size, recipe.seed, device, recipe.drop_last, recipe.limit,
        recipe.balanced, recipe.accumulate, recipe.flip and recipe.flip_by == "turn", recipe.hardest,
    )  # fmt: skip


def check_size(recipe: Recipe, channels: int, classes: int) -> None:
    """`UserError` where a network so wide has more weights than this machine has memory for: a record may ask for any width."""
    if recipe.width <= 4 or models.FILE in recipe.model:
        return
    with torch.random.fork_rng(devices=[]):
        count = models.count_parameters(network_from(recipe.but(width=1.0), channels, classes)) * recipe.width**2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 8 * count > memory:
        said = f"about {count:.1e} weights do not fit in this machine's {memory >> 30} GiB"
        raise UserError(f"width {recipe.width:g}: {said}: choose a smaller one")


def build_network(recipe: Recipe, data: DataSet, device: torch.device) -> Network:
    """The recipe's network for this data set, on the device, freshly initialised from the global generators."""
    check_size(recipe, data.sample_shape[0], network_classes(recipe, data))
    network = network_from(recipe, data.sample_shape[0], network_classes(recipe, data)).to(device)
    if recipe.dirac:
        initial.dirac(network)
    if recipe.whiten:
        if data.train.framed or data.train.stream or recipe.encoder != "direct" or recipe.flatten_time:
            raise UserError("whiten needs images held in memory and shown as they are (encoder direct, no flatten_time): set it off")
        initial.whiten(network, make_prepare(recipe, data).plain(initial.sample(data.train.inputs, data.train.labels).to(device)))
    return network.to(memory_format=torch.channels_last) if recipe.channels_last else network  # type: ignore[call-overload]


def network_from(recipe: Recipe, channels: int, classes: int) -> Network:
    """The recipe's network for inputs of so many channels."""
    return models.build(
        recipe.model,
        neuron=recipe.neuron,
        tau=recipe.tau,
        threshold=recipe.threshold,
        surrogate=recipe.surrogate,
        alpha=recipe.alpha or None,
        reset=recipe.reset,  # type: ignore[arg-type]
        detach=recipe.detach,
        strict=recipe.strict,
        learn_threshold=recipe.learn_threshold,
        learn_alpha=recipe.learn_alpha,
        kernel=recipe.kernel,
        norm=recipe.norm,
        in_channels=channels,
        num_classes=classes,
        steps=recipe.steps,
        width=recipe.width,
        encoder=recipe.encoder,
        flatten_time=recipe.flatten_time,
        memory=recipe.memory,
        levels=recipe.levels,
        through_time=recipe.through_time,
    )


def make_optimizer(recipe: Recipe, network: nn.Module, batches: int) -> tuple[torch.optim.Optimizer, Any]:
    """timm's optimiser (no weight decay on biases and other vectors) and its schedule."""
    if recipe.optimizer not in list_optimizers():
        raise unknown("optimizer", recipe.optimizer, map(str, list_optimizers()))
    extra: dict[str, Any] = {"eps": recipe.opt_eps} if recipe.opt_eps else {}
    if recipe.ns_steps:
        if "muon" not in recipe.optimizer:
            raise UserError(f"ns_steps is of optimizer muon, not of {recipe.optimizer}: leave it at 0")
        extra["ns_steps"] = recipe.ns_steps
    if get_optimizer_class(recipe.optimizer, bind_defaults=False) in optimizers.FUSED:
        extra["fused"] = True
    optimizer = create_optimizer_v2(
        network, recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum, **extra
    )
    optimizer = optimizers.quick(optimizer)
    constant = recipe.schedule == "constant"
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="multistep" if constant else recipe.schedule,
        decay_milestones=[10**9] if constant else [recipe.epochs // 2, 3 * recipe.epochs // 4],
        num_epochs=recipe.epochs,
        decay_epochs=recipe.decay_epochs,
        decay_rate=recipe.decay_rate,
        patience_epochs=recipe.patience_epochs,
        warmup_epochs=recipe.warmup_epochs,  # type: ignore[arg-type]
        warmup_lr=recipe.warmup_lr,
        min_lr=recipe.min_lr,
        step_on_epochs=recipe.schedule_by == "epoch",
        updates_per_epoch=batches,
    )
    return optimizer, scheduler
