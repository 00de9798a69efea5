"""Our own recipes. Each is a function that returns a `Recipe`; its docstring's first line is what `list recipes` prints."""

from typing import Any

from spiketrain.recipes.recipe import Recipe


def digits() -> Recipe:
    """Handwritten digits, 8×8: a convolutional LIF network at T=4, in under a minute on a laptop."""
    return Recipe(
        name="digits", data="digits", model="digits_convnet", steps=4, epochs=24, batch_size=64, optimizer="muon", lr=0.04,
        weight_decay=0.02, crop=1, smoothing=0.1, precision="fp32", kernel="reference",
    )  # fmt: skip


def mnist() -> Recipe:
    """MNIST, 28×28, with a small convolutional LIF network at T=2."""
    return Recipe(
        name="mnist", data="mnist", model="small_convnet", width=0.5, steps=2, epochs=4, batch_size=128, optimizer="muon", lr=0.02,
        weight_decay=0.02, threshold=0.5, surrogate="qgate", smoothing=0.1, crop=2,
    )  # fmt: skip


def cifar10_small() -> Recipe:
    """CIFAR-10 on a laptop: a small LIF network at T=2, minutes instead of hours."""
    return Recipe(
        name="cifar10-small", data="cifar10", model="small_convnet", steps=2, epochs=8, batch_size=100, optimizer="muon", lr=0.04,
        weight_decay=0.02, threshold=0.5, surrogate="qgate", crop=4, flip=True, smoothing=0.1,
    )  # fmt: skip


def _cifar10_fast(name: str, **changes: Any) -> Recipe:
    return Recipe(
        name=name, data="cifar10", model="fast_convnet4", batch_size=100, optimizer="muon", lr=0.04, weight_decay=0.04, ns_steps=3,
        warmup_epochs=0.25, hardest=0.6, surrogate="qgate", whiten=True, crop=3, crop_fill="reflect", flip=True, flip_by="turn",
        smoothing=0.2,
    ).but(**changes)  # fmt: skip


def cifar10_strict() -> Recipe:
    """CIFAR-10, division strict: a binary LIF network at T=4."""
    return _cifar10_fast("cifar10-strict", epochs=20, steps=4, threshold=0.5, alpha=1.0, norm="tebn")


def cifar10_open() -> Recipe:
    """CIFAR-10, division open: integers of sixteen levels at T=1 that unroll to binary spikes."""
    return _cifar10_fast(
        "cifar10-open", division="open", model="fast_convnet", neuron="ilif", levels=16, steps=1, threshold=0.2, epochs=28
    )


def _imnet(name: str, model: str, batch_size: int) -> Recipe:
    return Recipe(
        name=name, data="imnet", model=model, steps=4, epochs=100, batch_size=batch_size, eval_batch_size=128, optimizer="adamw",
        lr=2e-3 * batch_size / 1024, weight_decay=0.02, warmup_epochs=5, threshold=0.5, surrogate="qgate", smoothing=0.1, image_size=224,
        flip=True, color_jitter=0.4,
    )  # fmt: skip


def imnet_resnet18() -> Recipe:
    """ImageNet at 224 pixels with a LIF ResNet-18 at T=4: a start that nobody has trained to its end here (docs/scale.md)."""
    return _imnet("imnet-resnet18", "resnet18_imagenet", 256)


def imnet_resnet34() -> Recipe:
    """ImageNet at 224 pixels with a LIF ResNet-34 at T=4: likewise."""
    return _imnet("imnet-resnet34", "resnet34_imagenet", 256)


def imnet_resnet50() -> Recipe:
    """ImageNet at 224 pixels with a LIF ResNet-50 at T=4: likewise."""
    return _imnet("imnet-resnet50", "resnet50_imagenet", 128)


def digits_dvs() -> Recipe:
    """The digits before a simulated event camera: recordings made on first use, no download."""
    return Recipe(
        name="digits-dvs", data="digits_dvs", model="small_convnet", width=0.5, steps=6, event_size=0, epochs=10, batch_size=64,
        optimizer="muon", lr=0.02, weight_decay=0.02, threshold=0.5, surrogate="qgate", smoothing=0.1, kernel="reference", precision="fp32",
    )  # fmt: skip


def dvs128_objects() -> Recipe:
    """Real DVS128 recordings of five objects: 200 ms windows, trained on one session and tested on another."""
    return Recipe(
        name="dvs128-objects", data="dvs128-objects", model="small_convnet", width=0.5, steps=5, event_size=48, epochs=20, batch_size=32,
        optimizer="muon", lr=0.02, weight_decay=0.02, threshold=0.5, surrogate="qgate", smoothing=0.1, kernel="reference", precision="fp32",
        event_augment=("crop-flip-rotate",),
    )  # fmt: skip
