"""The command line of the benchmark that spiketrain replaces, flag for flag, on top of `spiketrain.train`.

    python main.py --model cifar_convnet --node-type LIFNode --dataset cifar10 --step 4 --batch-size 128 --act-fun QGateGrad --device 0

options.py has every option of the older script and what becomes of it, names.py every name that an option can take.
"""

import argparse
import contextlib
import difflib
import reprlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import yaml
from names import DATA, NODES, SIDES, Data, choose, slope
from options import EVERY, IDLE, OPTIONS, REFUSED, Option

from spiketrain import processes
from spiketrain.cli import finish, guarded
from spiketrain.errors import UserError, unknown
from spiketrain.files import read_text
from spiketrain.recipes import Recipe, seed

Values = dict[str, Any]
"""The values of all options, by the options' names with underscores."""

IMAGES_ONLY = ("encode", "aa", "reprob", "remode", "mixup", "cutmix", "mixup_prob", "mixup_off_epoch")
EVENTS_ONLY = ("mix_up", "cut_mix", "event_mix", "rand_aug")
IMNET_ONLY = (
    "img_size", "no_aug", "scale", "ratio", "hflip", "vflip", "color_jitter", "train_interpolation", "interpolation", "crop_pct", "mean",
    "std", "workers",
)  # fmt: skip
EVENT_NUMBERS = ("event_size", "cutmix_beta", "cutmix_prob", "cutmix_num", "gaussian_n", "randaug_n", "randaug_m")
NOT_IN_TABLE: dict[str, Values] = {
    "mnist": {"crop": 4},
    "fashion": {"crop": 4, "flip": True, "normalize": "none"},
    "ncars": {"event_augment": ("crop-flip-rotate",)},
}
"""What the older script did to the data sets that are not in its table."""
IMNET_MODELS = {"resnet18": "resnet18_imagenet", "resnet34": "resnet34_imagenet", "resnet50": "resnet50_imagenet"}
"""Networks that the older script gave another stem where the data were ImageNet."""
HEADINGS = {
    "ours": "options that the older script did not have",
    "used": "options",
    "idle": "options that are accepted and change nothing, with the reason",
    "refused": "options that are refused unless left at their defaults, with the reason",
}


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are a `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class Wide(argparse.HelpFormatter):
    """Help in lines of 110 characters."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)


def parser() -> Parser:
    """Every option of the older script, from the table, and a few of ours. An option that is not given leaves no value."""
    made = Parser(
        usage="python main.py [options]", description="The older benchmark's command line on spiketrain.", allow_abbrev=False,
        formatter_class=Wide,
    )  # fmt: skip
    groups = {kind: made.add_argument_group(heading) for kind, heading in HEADINGS.items()}
    text = "YAML with values of options, which the command line overrides"
    groups["used"].add_argument("-c", "--config", metavar="FILE", default=None, help=text)
    for option in EVERY:
        default = "" if option.default in (None, False, "") else f" (default: {option.default})"
        shape: dict[str, Any] = {"action": "store_true"}
        if option.type is list:
            shape = {"nargs": "+", "type": float, "metavar": "X"}
        elif option.type is not bool:
            shape = {"type": option.type, "metavar": {int: "N", float: "X", str: "TEXT"}[option.type]}
        help_text = (option.text + default).replace("%", "%%")
        groups[option.kind].add_argument(*option.names, dest=option.dest, default=argparse.SUPPRESS, help=help_text, **shape)
    return made


def parse(arguments: Sequence[str]) -> tuple[Values, set[str]]:
    """All values, and the names of those that the user gave; `UserError` for what is unknown or refused."""
    made = parser()
    found, rest = made.parse_known_args(arguments)
    if rest:
        flags = [flag for action in made._actions for flag in action.option_strings]
        near = difflib.get_close_matches(rest[0].split("=")[0], flags, n=1, cutoff=0.5)
        raise UserError(f"unknown option {rest[0]!r}" + (f": did you mean {near[0]!r}?" if near else ": see --help"))
    given = vars(found)
    file = given.pop("config")
    given = (_config(file) if file else {}) | given
    values = {o.dest: o.default for o in EVERY} | given
    for option in EVERY:
        if option.type in (int, float) and abs(values[option.dest] or 0) > 1 << 53:
            raise UserError(f"{option.flag}: no number of {option.type.__name__} is so large here")
    for option in REFUSED:
        if values[option.dest] != option.default:
            raise UserError(f"{option.flag} is refused: {option.text}")
    return values, set(given)


def _config(file: str) -> Values:
    """Values from a YAML file."""
    try:
        values = yaml.safe_load(read_text(file, 1 << 20, "YAML file")) or {}
    except (ValueError, RecursionError, OverflowError, yaml.YAMLError) as error:  # YAML's dates and numbers are checked by nobody else
        raise UserError(f"--config {file}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {file}: names and values are expected, one a line")
    known = {o.dest: o for o in EVERY}
    for key in values:
        if key not in known:
            raise unknown(f"option in {file}", key, known)
    return {key: _typed(known[key], value, file) for key, value in values.items()}


def _typed(option: Option, value: Any, file: str) -> Any:
    """A value of a YAML file in the option's type. YAML takes 5e-3 for a text: it is a number here."""
    if value is None and option.default is None:
        return None
    if type(value) is option.type:
        return value
    if option.type is float and isinstance(value, int | str) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(value)
    raise UserError(f"--config {file}: {option.dest} must be {option.type.__name__}, not {reprlib.repr(value)}")


def to_recipe(v: Values, given: set[str]) -> Recipe:
    """The recipe that the options mean; `given`: names of those that the user gave."""
    data = DATA[choose("--dataset", v["dataset"], DATA)]
    model = choose("--model", v["model"], SIDES)
    neuron = NODES[choose("--node-type", v["node_type"], NODES)]
    surrogate = slope(v["act_fun"])
    classes = v["num_classes"] if "num_classes" in given else 0
    _check(v, data, model, classes)
    model = IMNET_MODELS.get(model, model) if data.name == "imnet" else model
    basic = seed.data_options(data.name, classes) if data.events or data.name.startswith("cifar") else {}
    basic |= NOT_IN_TABLE.get(data.name, {}) | (_imnet(v, given) if data.name == "imnet" else {})
    return seed.compatible(neuron, surrogate.name, v["batch_size"], v["lr"]).but(
        name="-".join(str(v[k]) for k in ("model", "dataset", "node_type", "step", "suffix") if v[k] != ""),
        data=data.name, model=model, classes=classes, alpha=surrogate.alpha, strict=surrogate.strict,
        learn_alpha=neuron == "plif" and surrogate.learned,
        **_network(v), **_training(v), **basic | (_events(v, basic) if data.events else _images(v, given)),
    )  # fmt: skip


def _check(v: Values, data: Data, model: str, classes: int) -> None:
    """`UserError` where options do not fit the data set or each other."""
    for dest in IMAGES_ONLY if data.events else EVENTS_ONLY:
        option = next(o for o in OPTIONS if o.dest == dest)
        if v[dest] != option.default:
            what, has = ("images", "recordings") if data.events else ("event data", "images")
            raise UserError(f"{option.flag} is for {what}, and {v['dataset']} has {has}")
    low, high = SIDES[model]
    side = v["img_size"] if data.name == "imnet" else data.side or v["event_size"]
    if side < low or (high and side > high):
        bounds = f"{low} to {high}" if high else f"at least {low}"
        change = "set --event-size" if data.events else "choose another --model, or --img-size for imnet"
        raise UserError(f"--model {model} takes a side of {bounds} pixels, and --dataset {v['dataset']} has {side}: {change}")
    objects = data.name == "NCALTECH101" and classes == 100  # the table counts the classes that are objects
    if 0 < classes < data.classes and not objects:
        raise UserError(f"--num-classes {classes}: {v['dataset']} has {data.classes}; leave the option out")
    if v["tet_loss"] and v["loss_fn"] not in ("ce", "tet"):
        raise UserError(f"--tet-loss and --loss-fn {v['loss_fn']} exclude each other: TET is a cross entropy at every step")


def _network(v: Values) -> Values:
    return {
        "steps": v["step"],
        "threshold": v["threshold"],
        "tau": v["tau"],
        "learn_threshold": v["requires_thres_grad"],
        "encoder": v["encode"],
        "norm": "time" if v["layer_by_layer"] else "step",
        "flatten_time": v["temporal_flatten"],
    }


def _training(v: Values) -> Values:
    return {
        "seed": v["seed"],
        "epochs": v["epochs"],
        "precision": "auto" if v["amp"] or v["native_amp"] or v["apex_amp"] else "fp32",
        "optimizer": v["opt"],
        "opt_eps": v["opt_eps"],
        "momentum": v["momentum"],
        "weight_decay": v["weight_decay"],
        "clip_grad": v["clip_grad"] or 0.0,
        "grad_noise": v["noisy_grad"],
        "schedule": v["sched"],
        "warmup_epochs": v["warmup_epochs"],
        "warmup_lr": v["warmup_lr"],
        "min_lr": v["min_lr"],
        "decay_epochs": v["decay_epochs"],
        "decay_rate": v["decay_rate"],
        "patience_epochs": v["patience_epochs"],
        "ema": v["model_ema_decay"] if v["model_ema"] else 0.0,
        "loss": "tet" if v["tet_loss"] else v["loss_fn"],
        "smoothing": v["smoothing"],
    }


def _images(v: Values, given: set[str]) -> Values:
    """Augmentation of images, of which the older script fixed or lost all options."""
    changes = {field: v[dest] for dest, field in (("aa", "randaugment"), ("reprob", "erase"), ("remode", "erase_mode")) if dest in given}
    if changes.get("randaugment") and v["dataset"] != "imnet":  # which takes any of timm's policies
        from spiketrain.data.image_augment import RandAugment

        RandAugment.parse(changes["randaugment"])
    mixes = v["mixup"] or v["cutmix"]
    if not mixes and {"mixup_prob", "mixup_off_epoch"} & given:
        raise UserError("--mixup-prob and --mixup-off-epoch need --mixup or --cutmix")
    if mixes:
        changes |= {"mixup": v["mixup"], "cutmix": v["cutmix"], "mix_off_epoch": v["mixup_off_epoch"]}
        changes["mix_prob"] = v["mixup_prob"] if "mixup_prob" in given else 1.0
    return changes


def _imnet(v: Values, given: set[str]) -> Values:
    """What the older script did to ImageNet through timm's loader."""
    if v["no_aug"] and (clash := sorted(set(IMNET_ONLY[2:8]) & given | {"aa", "reprob"} & given)):
        raise UserError(f"--no-aug and --{clash[0].replace('_', '-')} exclude each other")
    common = {
        "image_size": v["img_size"],
        "test_crop": v["crop_pct"] or 0.875,
        "test_interpolation": v["interpolation"] or "bicubic",
        "mean": tuple(v["mean"] or ()),
        "std": tuple(v["std"] or ()),
        "workers": v["workers"] if "workers" in given else 0,
    }
    if v["no_aug"]:
        return common | {"random_crop": False}
    return common | {
        "area": tuple(v["scale"]),
        "aspect": tuple(v["ratio"]),
        "flip": v["hflip"] > 0,
        "flip_share": v["hflip"],
        "vertical_flip": v["vflip"],
        "color_jitter": v["color_jitter"],
        "interpolation": v["train_interpolation"],
    }


def _events(v: Values, basic: Values) -> Values:
    """Augmentation of event frames: RandAugment before what the data set always has, mixes behind it."""
    mixes = tuple(name for name, flag in (("mixup", "mix_up"), ("cutmix", "cut_mix"), ("eventmix", "event_mix")) if v[flag])
    first = ("randaugment",) if v["rand_aug"] else ()
    return {
        "event_size": v["event_size"],
        "event_augment": (*first, *basic.get("event_augment", ()), *mixes),
        "event_mix_beta": v["cutmix_beta"],
        "event_mix_prob": v["cutmix_prob"],
        "event_mix_count": v["cutmix_num"],
        "event_mix_components": v["gaussian_n"],
        "event_randaug_n": v["randaug_n"],
        "event_randaug_m": float(v["randaug_m"]),
    }


def remarks(v: Values) -> list[str]:
    """A line for everything that was given and does nothing."""
    lines = [f"{o.flag} changes nothing here: {o.text}" for o in IDLE if v[o.dest] != o.default]
    if not DATA[v["dataset"]].events:
        numbers = [o for o in OPTIONS if o.dest in EVENT_NUMBERS and v[o.dest] != o.default]
        lines += [f"{o.flag} changes nothing here: it is for event data, and {v['dataset']} has images" for o in numbers]
    if v["dataset"] != "imnet":
        streams = [o for o in OPTIONS if o.dest in IMNET_ONLY and v[o.dest] != o.default]
        lines += [f"{o.flag} changes nothing here: it is for --dataset imnet" for o in streams]
    if v["dataset"] == "fashion":
        lines.append("the older script also rotated the images of fashion by up to 10°, which is not here")
    return lines


def check_view(recipe: Recipe) -> None:
    """`UserError` where the options for images that stream do not fit each other."""
    from spiketrain.assemble import make_view

    make_view(recipe)


def dry_run(recipe: Recipe, data: Data) -> None:
    """The recipe's network, forward and backward over one batch of generated data, without reading a data set."""
    import torch

    from spiketrain import models
    from spiketrain.assemble import make_optimizer, network_from
    from spiketrain.objective import Objective

    side = recipe.image_size or data.side or recipe.event_size
    shape, classes = (data.channels, side, side), recipe.classes or data.classes
    network = network_from(recipe.but(kernel="reference"), data.channels, classes)
    samples = 1 if side >= 32 else 2  # a norm needs two values a channel, and small frames shrink to one pixel
    torch.manual_seed(recipe.seed)
    batch = torch.rand(recipe.steps, samples, *shape) if data.events else torch.rand(samples, *shape)
    make_optimizer(recipe, network, 1)
    logits = network(batch)
    loss = Objective(recipe.loss, recipe.smoothing)(logits, torch.zeros(samples, dtype=torch.long))
    loss.backward()
    print(f"recipe      {recipe.name}: {recipe.data}, {recipe.model}, {recipe.neuron}, {recipe.surrogate}, T={recipe.steps}")
    print(f"parameters  {models.count_parameters(network):,}")
    print(f"MACs a step {models.count_macs(network, shape):,}")
    print(f"logits      {list(logits.shape)}, loss {loss.item():.4f}")


def device(index: int) -> str:
    """The device of `--device`; says in a line where it is not the GPU that was asked for."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{index}"
    if processes.leads():
        print(f"no GPU on this machine: --device {index} uses the CPU", file=sys.stderr)
    return "cpu"


def run(words: Sequence[str]) -> int:
    """What the command says: a dry run, or a training run with its record."""
    values, given = parse(words)
    recipe = to_recipe(values, given)
    for line in remarks(values) if processes.leads() else ():
        print(f"main.py: {line}", file=sys.stderr)
    place = device(values["device"])
    check_view(recipe)
    if values["dry_run"]:
        dry_run(recipe, DATA[values["dataset"]])
        return 0
    from spiketrain.train import train

    record = train(
        recipe, data_root=values["data_root"], output=values["output"], device=place, resume=values["resume"] or None,
        download=values["download"], command=shlex.join(["main.py", *words]), tensorboard=values["tensorboard_dir"] or None,
        into=values["into"], checkpoint_every=values["checkpoint_every"], skip_bad_steps=values["skip_bad_steps"],
    )  # fmt: skip
    if processes.leads():
        finish(record)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 2 for a mistake of the user's, 130 or 143 when stopped."""
    return guarded("main.py", lambda: run(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
