"""`Recipe`: everything that decides the outcome of a run, as one frozen value. The command line's flags are its fields."""

import dataclasses
import math
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spiketrain.errors import UserError, unknown

MOST = 1 << 53
"""No field counts further."""


def _field(
    default: Any, group: str, text: str, choices: tuple[str, ...] = (), low: float | None = None, high: float | None = None
) -> Any:
    return dataclasses.field(default=default, metadata={"group": group, "help": text, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run's description. `but(**changes)` returns another; a wrong name or value is a `UserError`."""

    name: str = _field("custom", "run", "what the run is called")
    seed: int = _field(0, "run", "of everything random", low=0, high=2**32 - 1)
    epochs: int = _field(10, "run", "passes over the training part", low=1, high=1_000_000)
    precision: str = _field("auto", "run", "of convolutions and norms; auto: bf16 where it is fast", ("auto", "fp32", "bf16"))
    kernel: str = _field("auto", "run", "which implementation computes the neurons", ("auto", "reference", "compiled", "triton"))
    memory: str = _field(
        "speed", "run", "kept for the backward pass: all; spikes as bits; least: layers are computed again", ("speed", "bits", "least")
    )
    workers: int = _field(0, "run", "processes that decode images that stream; 0: one a core, -1: none", low=-1, high=1024)
    channels_last: bool = _field(True, "run", "keep images and weights with the channel as the fastest axis")
    division: str = _field(
        "strict", "run", "strict: binary spikes, exact back-propagation through time; open: anything else", ("strict", "open")
    )

    data: str = _field("digits", "data", "name of a data set, or a folder with one subfolder a class")
    classes: int = _field(0, "data", "number of classes; 0: as many as the data have", low=0, high=1_000_000)
    image_size: int = _field(0, "data", "scale and crop the images of a folder to this side; 0: as they are", low=0, high=4096)
    stream: bool = _field(False, "data", "decode the images of a folder when they are needed, and hold none (ImageNet and shards always)")
    event_size: int = _field(48, "data", "side of event frames in pixels; 0: the sensor's own", low=0, high=4096)
    split: str = _field("", "data", "how an event set is divided (see docs/events.md); empty: its default")
    frames_by: str = _field("time", "data", "a frame is an equal share of time, of events, or a fixed window", ("time", "count", "window"))
    frame_kind: str = _field("sum", "data", "what a frame holds", ("sum", "binary", "surface"))
    frame_window: int = _field(0, "data", "length of a frame in µs, for frames-by window", low=0)
    frame_resize: str = _field("events", "data", "move events (counts stay whole) or interpolate frames", ("events", "bilinear"))
    normalize: str = _field("data", "data", "statistics that normalise images, training and test alike", ("data", "imagenet", "none"))
    mean: tuple[float, ...] = _field((), "data", "of each channel, of pixels in 0…1, instead of those that normalize names")
    std: tuple[float, ...] = _field((), "data", "of each channel, likewise")
    balanced: bool = _field(False, "data", "draw training samples with replacement, every class as often")
    limit: int = _field(0, "data", "train on this many samples only; 0: all", low=0)
    hardest: float = _field(
        1.0, "data", "an epoch is this share of the training samples, those whose loss was last the greatest; 1: all", low=0.01, high=1.0
    )

    model: str = _field("digits_convnet", "network", "name of a model")
    width: float = _field(1.0, "network", "factor on the channels of every layer", low=0.01, high=100.0)
    norm: str = _field(
        "time", "network", "batch norm over all steps at once, a step at a time, scaled by the threshold, or by a learned factor a step",
        ("time", "step", "tdbn", "tebn"),
    )  # fmt: skip
    steps: int = _field(4, "network", "time steps T", low=1, high=10_000)
    encoder: str = _field("direct", "network", "how an image becomes T inputs", ("direct", "rate", "ttfs", "phase"))
    curriculum: tuple[float, ...] = _field((), "network", "T in equal shares of the epochs, as 1,2,4, the last of them steps; empty: steps")
    whiten: bool = _field(False, "network", "set the stem's weights by training images, and keep them (fast_convnet)")
    dirac: bool = _field(False, "network", "convolutions begin by passing their input on, as far as their channels go")
    flatten_time: bool = _field(False, "network", "make the T steps channels of a single one")

    neuron: str = _field("lif", "neuron", "name of a neuron")
    tau: float = _field(2.0, "neuron", "time constant in steps", low=1.0)
    threshold: float = _field(1.0, "neuron", "potential at which a neuron fires", low=0.0)
    surrogate: str = _field("atan", "neuron", "name of a surrogate slope")
    alpha: float = _field(0.0, "neuron", "steepness of the surrogate; 0: its own default", low=0.0)
    reset: str = _field("hard", "neuron", "to zero, or by subtraction of the threshold", ("hard", "soft"))
    detach: bool = _field(True, "neuron", "no gradient through the reset")
    through_time: bool = _field(True, "neuron", "gradient from a step to the one before; off: SLTT, in division open only")
    strict: bool = _field(False, "neuron", "fire at u > threshold only; else at u ≥ threshold")
    levels: int = _field(4, "neuron", "of ilif: most spikes a step", low=1, high=1 << 16)
    learn_threshold: bool = _field(False, "neuron", "train the thresholds")
    learn_alpha: bool = _field(False, "neuron", "train the steepness of the surrogate")

    batch_size: int = _field(128, "training", "samples a step", low=1, high=1 << 20)
    accumulate: int = _field(1, "training", "split each batch into this many parts, one after the other", low=1)
    eval_batch_size: int = _field(250, "training", "samples a step of evaluation", low=1, high=1 << 20)
    drop_last: bool = _field(True, "training", "leave out the last, smaller batch of an epoch")
    optimizer: str = _field("adamw", "training", "any of timm's optimisers")
    lr: float = _field(2e-3, "training", "learning rate at its highest", low=0.0)
    weight_decay: float = _field(0.01, "training", "of weights, not of biases and norms", low=0.0)
    momentum: float = _field(0.9, "training", "of optimisers that have one", low=0.0, high=1.0)
    opt_eps: float = _field(0.0, "training", "epsilon of the optimiser; 0: its default", low=0.0)
    ns_steps: int = _field(0, "training", "Newton-Schulz iterations of muon; 0: its default", low=0, high=100)
    schedule: str = _field(
        "cosine", "training", "of the learning rate", ("cosine", "tanh", "step", "multistep", "poly", "plateau", "constant")
    )
    schedule_by: str = _field("step", "training", "change the learning rate every step or every epoch", ("step", "epoch"))
    warmup_epochs: float = _field(1.0, "training", "epochs of linear warm-up", low=0.0)
    warmup_lr: float = _field(1e-6, "training", "learning rate that the warm-up begins with", low=0.0)
    min_lr: float = _field(0.0, "training", "learning rate at the end", low=0.0)
    decay_epochs: float = _field(30.0, "training", "epochs between drops, for schedule step", low=0.0)
    decay_rate: float = _field(0.1, "training", "factor of a drop (step, plateau); power for poly", low=0.0)
    patience_epochs: int = _field(10, "training", "for schedule plateau", low=0)
    clip_grad: float = _field(0.0, "training", "largest norm of the gradient; 0: any", low=0.0)
    grad_noise: float = _field(0.0, "training", "standard deviation of noise added to every gradient", low=0.0)
    ema: float = _field(0.0, "training", "decay of an average of the weights, which is then what is tested; 0: none", low=0.0, high=1.0)

    loss: str = _field("ce", "loss", "of the logits", ("ce", "tet", "mse", "onehot-mse", "mix"))
    smoothing: float = _field(0.0, "loss", "label smoothing", low=0.0, high=1.0)
    tet_lambda: float = _field(0.0, "loss", "weight of TET's regulariser", low=0.0, high=1.0)
    tet_phi: float = _field(1.0, "loss", "value that TET's regulariser pulls logits to")
    distil: float = _field(0.0, "loss", "weight of self-distillation: a sample's most confident step teaches its least confident", low=0.0)
    distil_tau: float = _field(2.0, "loss", "temperature of self-distillation", low=0.01)

    crop: int = _field(0, "augmentation", "random crop with this padding in pixels; 0: none", low=0, high=1024)
    flip: bool = _field(False, "augmentation", "mirror half of the images")
    crop_fill: str = _field("zero", "augmentation", "what crop moves in from outside: zeros, or the image mirrored", ("zero", "reflect"))
    flip_by: str = _field("random", "augmentation", "mirror at random, or every image every other epoch", ("random", "turn"))
    train_sides: tuple[float, ...] = _field(
        (), "augmentation", "side that training images are scaled to, in equal shares of the epochs, as 24,32, the last of them their own"
    )
    random_crop: bool = _field(True, "augmentation", "images that stream: a random part, scaled; off: the middle, as in tests")
    area: tuple[float, ...] = _field((0.08, 1.0), "augmentation", "of that part: smallest and largest share of the image")
    aspect: tuple[float, ...] = _field((0.75, 4 / 3), "augmentation", "of that part: smallest and largest width by height")
    flip_share: float = _field(0.5, "augmentation", "images that stream: share that flip mirrors", low=0.0, high=1.0)
    vertical_flip: float = _field(0.0, "augmentation", "images that stream: share turned upside down", low=0.0, high=1.0)
    color_jitter: float = _field(0.0, "augmentation", "images that stream: change of brightness, contrast, saturation", low=0.0)
    interpolation: str = _field("random", "augmentation", "images that stream: of that part; random: bilinear or bicubic")
    test_crop: float = _field(0.875, "augmentation", "images that stream: side of what a test sees by the image's shorter side", low=0.0)
    test_interpolation: str = _field("bicubic", "augmentation", "images that stream: for tests")
    randaugment: str = _field("", "augmentation", "RandAugment in timm's notation, as rand-m9-mstd0.5-inc1; empty: none")
    erase: float = _field(0.0, "augmentation", "probability of random erasing", low=0.0, high=1.0)
    erase_mode: str = _field("pixel", "augmentation", "what erased pixels become", ("pixel", "const", "rand"))
    mixup: float = _field(0.0, "augmentation", "Beta parameter of mixup on images; 0: off", low=0.0)
    cutmix: float = _field(0.0, "augmentation", "Beta parameter of cutmix on images; 0: off", low=0.0)
    mix_prob: float = _field(1.0, "augmentation", "probability of mixing a batch", low=0.0, high=1.0)
    mix_off_epoch: int = _field(0, "augmentation", "no mixing from this epoch on; 0: to the end", low=0)
    event_augment: tuple[str, ...] = _field((), "augmentation", "on event frames, in this order, comma-separated (docs/augmentations.md)")
    event_mix_beta: float = _field(2.0, "augmentation", "Beta parameter of mixing event frames", low=0.0)
    event_mix_prob: float = _field(0.5, "augmentation", "probability of mixing an event sample", low=0.0, high=1.0)
    event_mix_count: int = _field(1, "augmentation", "how often event samples are mixed, one after the other", low=1)
    event_mix_components: int = _field(3, "augmentation", "Gaussians in EventMix's mask", low=1)
    event_randaug_n: int = _field(3, "augmentation", "operations of randaugment on event frames", low=1)
    event_randaug_m: float = _field(15.0, "augmentation", "level of randaugment on event frames, of 30", low=0.0, high=30.0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        if self.accumulate > self.batch_size:
            raise UserError(f"accumulate {self.accumulate} is more than the batch size {self.batch_size}")
        if self.frames_by == "window" and not self.frame_window:
            raise UserError("frames_by 'window' needs frame_window, the length of a frame in µs")
        self._check_hardest()
        self._check_shares()
        strangers = {
            "neuron ilif": self.neuron == "ilif", "a curriculum of T": self.curriculum, "through_time off": not self.through_time,
            "distil": self.distil,
        }  # fmt: skip
        if self.division == "strict" and (found := [name for name, there in strangers.items() if there]):
            raise UserError(f"{' and '.join(found)} is not of the strict division: it needs division open (--division open)")

    def _check_hardest(self) -> None:
        others = {"balanced": self.balanced, "mixup": self.mixup, "cutmix": self.cutmix}
        others |= {f"event_augment {name}": True for name in ("mixup", "cutmix", "eventmix") if name in self.event_augment}
        if self.hardest < 1 and (found := [name for name, there in others.items() if there]):
            raise UserError(f"hardest {self.hardest:g} goes by the loss of each sample, and not with {' or '.join(found)}: set it to 1")

    def _check_shares(self) -> None:
        if len(self.train_sides) > self.epochs or not all(s % 1 == 0 and 4 <= s <= 4096 for s in self.train_sides):
            raise UserError("train_sides must be whole numbers of pixels from 4 to 4096, no more of them than epochs, as 24,32")
        if not self.curriculum:
            return
        whole = all(t % 1 == 0 and 1 <= t <= 10_000 for t in self.curriculum)
        if not whole or self.curriculum[-1] != self.steps or len(self.curriculum) > self.epochs:
            raise UserError(f"curriculum must be whole numbers from 1 on, no more than epochs, of which the last is steps ({self.steps})")
        if self.flatten_time or self.norm == "tebn":
            raise UserError("curriculum does not go with flatten_time or norm tebn, which need the same T always")

    def steps_in(self, epoch: int) -> int:
        """T in an epoch (from 0)."""
        return self._in_share(self.curriculum, epoch, self.steps)

    def side_in(self, epoch: int) -> int:
        """Side of the training images in an epoch (from 0); 0: their own."""
        return self._in_share(self.train_sides, epoch, 0)

    def _in_share(self, values: tuple[float, ...], epoch: int, otherwise: int) -> int:
        return int(values[epoch * len(values) // self.epochs]) if values else otherwise

    def but(self, **changes: Any) -> "Recipe":
        """The same recipe with some fields changed."""
        for field in changes:
            if field not in FIELDS:
                raise unknown("recipe field", field, FIELDS)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Every field, as JSON has it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Recipe":
        """The inverse of `to_dict`."""
        return Recipe().but(**values)

    def flags(self, base: "Recipe") -> list[str]:
        """The command line's flags that make this recipe of `base`, in the order of the fields."""
        words: list[str] = []
        for name in FIELDS:
            value = getattr(self, name)
            if value == getattr(base, name) or name == "name":
                continue
            flag = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag if value else flag.replace("--", "--no-", 1))
            else:
                words += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        return words


FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(Recipe)}
_TYPES = typing.get_type_hints(Recipe)


def field_type(name: str) -> type:
    """int, float, bool, str, or tuple (of str or float)."""
    kind = _TYPES[name]
    return tuple if isinstance(kind, types.GenericAlias) else kind


def _tuple(name: str, value: Any) -> tuple[Any, bool]:
    """A tuple of the field's type of items, from one, a list, or a text with commas; and whether it is one."""
    if isinstance(value, str):
        value = value.split(",") if value else ()
    if not isinstance(value, list | tuple):
        return value, False
    if typing.get_args(_TYPES[name])[0] is str:
        return tuple(value), all(isinstance(v, str) for v in value)
    try:
        numbers = tuple(float(v) for v in value if not isinstance(v, bool))
    except (TypeError, ValueError):
        return value, False
    return numbers, len(numbers) == len(value) and all(map(math.isfinite, numbers))


def _checked(field: dataclasses.Field[Any], value: Any) -> Any:
    """value in the field's type, or a `UserError` that names the field."""
    kind = field_type(field.name)
    if kind is tuple:
        value, good = _tuple(field.name, value)
    elif kind is float:
        good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
        value = float(value) if good else value
    else:
        good = type(value) is kind
    if not good or (kind is float and not math.isfinite(value)):
        raise UserError(f"{field.name} must be {kind.__name__}, not {reprlib.repr(value)}")
    if kind is int and abs(value) > MOST:
        raise UserError(f"{field.name} must be at most {MOST} from zero, not a number of {len(str(abs(value)))} digits")
    meta = field.metadata
    if meta["choices"] and value not in meta["choices"]:
        raise unknown(field.name, value, meta["choices"])
    if meta["low"] is not None and value < meta["low"]:
        raise UserError(f"{field.name} must be at least {meta['low']}, not {value}")
    if meta["high"] is not None and value > meta["high"]:
        raise UserError(f"{field.name} must be at most {meta['high']}, not {value}")
    return value
