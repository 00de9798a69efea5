"""The command line of the benchmark that spiketrain replaces, flag for flag, on top of `spiketrain.train`.

    python main.py --model cifar_convnet --node-type LIFNode --dataset cifar10 --step 4 --batch-size 128 --act-fun QGateGrad --device 0
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from options import OPTIONS, REFUSED, Option

from spiketrain.errors import UserError, unknown
from spiketrain.recipes import Recipe, seed

DATA = {
    "cifar10": "cifar10", "cifar100": "cifar100", "mnist": "mnist", "fashion": "fashion", "dvsc10": "dvsc10", "dvsg": "dvsg",
    "NCALTECH101": "NCALTECH101", "nmnist": "nmnist", "NCARS": "ncars",
}  # fmt: skip
SHAPES = {
    "cifar10": (3, 32, 10), "cifar100": (3, 32, 100), "mnist": (1, 28, 10), "fashion": (1, 28, 10), "dvsc10": (2, 0, 10),
    "dvsg": (2, 0, 11), "NCALTECH101": (2, 0, 101), "nmnist": (2, 0, 10), "ncars": (2, 0, 2),
}  # fmt: skip
"""Data set → channels, side (0: --event-size), classes; for --dry-run, which reads no data."""
MODELS = ("cifar_convnet", "dvs_convnet", "mnist_convnet", "resnet9", "resnet18", "resnet34", "resnet50")
NODES = {"IFNode": "if", "LIFNode": "lif", "PLIFNode": "plif", "ReLUNode": "relu"}
SURROGATES = {
    # name: surrogate, alpha, fires at u > θ only
    "Atan": ("atan", 2.0, True), "QGate": ("qgate", 2.0, True), "Gate": ("gate", 2.0, True), "Sigmoid": ("sigmoid", 2.0, False),
    "ReLU": ("relu", 2.0, False), "STDP": ("relu", 1.0, True), "BackEIGate": ("rectangle", 1.0, True),
}  # fmt: skip
NOT_HERE = {
    "--dataset": {
        "imnet": "ImageNet is not here yet", "TinyImageNet": "use a folder of images with spiketrain train --data",
        "esimnet": "its axes were swapped in the older script", "shd": "audio is not here", "ntidigits": "audio is not here",
        "bullyingdvs": "it crashed", "UCF101DVS": "not here", "HMDBDVS": "its training part contained test samples", "nomni": "it crashed",
        "CUB2002011": "use a folder of images with spiketrain train --data", "StanfordCars": "use a folder of images",
        "StanfordDogs": "use a folder of images", "FGVCAircraft": "use a folder of images", "Flowers102": "use a folder of images",
    },
    "--model": {
        "resnet19": "not here yet", "SNN7_tiny": "not here", "SNN5": "not here", "VGG_SNN": "not here yet", "SHD_SNN": "audio is not here",
        "resnet34_half": "not here", "resnet50_half": "not here", "resnet101": "not here", "resnet152": "not here",
        "sew_resnet18": "no SEW model could be built by the older script, and none is here yet",
    },
    "--node-type": {
        **dict.fromkeys(("PSU", "IPSU", "RPSU", "SPSN"), "it crashed in the older script (generate_matrix was not defined)"),
        **dict.fromkeys(("IzhNode", "IzhNodeMU", "SimHHNode"), "a brain-simulation neuron, which diverges at these thresholds"),
        **dict.fromkeys(("DGLIFNode", "HTDGLIFNode", "LIAFNode"), "its output is analog: it is no spiking neuron"),
        **dict.fromkeys(("BackEINode", "OnlineLIFNode", "DoubleSidePLIFNode"), "it crashed in the older script with every model"),
        **dict.fromkeys(("BurstLIFNode", "NoiseLIFNode", "NoisePLIFNode", "BiasLIFNode", "BiasPLIFNode", "BiasReLUNode"), "not here"),
        **dict.fromkeys(("LIFSTDPNode", "AdaptiveNode"), "not here"),
    },
    "--act-fun": {"Round": "its output is no spike (0 to 5)", "EI": "its output is no spike (−1, 0, 1)"},
}  # fmt: skip


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are a `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def parser() -> Parser:
    """Every option of the older script, from the table, and three of ours."""
    made = Parser(description="The older benchmark's command line on spiketrain.", allow_abbrev=False)
    made.add_argument("-c", "--config", metavar="FILE", help="YAML with values of options, which the command line overrides")
    made.add_argument("--dry-run", action="store_true", help="build everything, run one batch of generated data, print sizes, and exit")
    made.add_argument("--data-root", metavar="DIR", help="where data sets lie (default: environment SPIKETRAIN_DATA, else ./data)")
    made.add_argument("--download", action="store_true", help="fetch the data set if it is absent")
    for option in OPTIONS:
        prefix = {"used": "", "harmless": "accepted: ", "refused": "refused: "}[option.kind]
        text = f"{prefix}{option.text} (default: {option.default!r})".replace("%", "%%")
        if option.type is bool:
            made.add_argument(*option.names, dest=option.dest, action="store_true", default=argparse.SUPPRESS, help=text)
        else:
            made.add_argument(*option.names, dest=option.dest, type=option.type, default=argparse.SUPPRESS, help=text, metavar="X")
    return made


def parse(arguments: Sequence[str]) -> tuple[dict[str, Any], set[str]]:
    """All values by name, and which of them the user gave; `UserError` for what is unknown or refused."""
    made = parser()
    found, rest = made.parse_known_args(arguments)
    if rest:
        flags = [flag for action in made._actions for flag in action.option_strings]
        near = difflib.get_close_matches(rest[0].split("=")[0], flags, n=1, cutoff=0.5)
        raise UserError(f"unknown option {rest[0]!r}" + (f": did you mean {near[0]!r}?" if near else ": see --help"))
    given = vars(found)
    given = _config(given["config"]) | given
    values = {o.dest: o.default for o in OPTIONS} | given
    for option in REFUSED:
        if values[option.dest] != option.default:
            raise UserError(f"{option.names[0]} is refused: {option.text}")
    return values, set(given)


def _config(file: str | None) -> dict[str, Any]:
    """Values from a YAML file; its keys are the options' names with underscores."""
    if not file:
        return {}
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"--config {file}: cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {file}: names and values are expected, one a line")
    known: dict[str, Option] = {o.dest: o for o in OPTIONS}
    for key, value in values.items():
        if key not in known:
            raise unknown(f"option in {file}", key, known)
        wanted = (int, float) if known[key].type is float else known[key].type
        if value is not None and not isinstance(value, wanted):
            raise UserError(f"--config {file}: {key} must be {known[key].type.__name__}, not {value!r}")
    return values


def _choose(flag: str, name: str, known: Sequence[str]) -> str:
    if name in known:
        return name
    if name in NOT_HERE[flag]:
        raise UserError(f"{flag} {name} is refused: {NOT_HERE[flag][name]}")
    raise unknown(flag, name, known)


def surrogate(name: str) -> tuple[str, float, bool]:
    """(surrogate, alpha, strict) of `--act-fun`: with one Grad behind it, two, or none."""
    bare = name
    while bare.endswith("Grad"):
        bare = bare.removesuffix("Grad")
    return SURROGATES[_choose("--act-fun", bare, tuple(SURROGATES))]


def to_recipe(values: dict[str, Any], given: set[str]) -> Recipe:
    """The recipe that the options mean."""
    v = values
    data = DATA[_choose("--dataset", v["dataset"], tuple(DATA))]
    model = _choose("--model", v["model"], MODELS)
    neuron = NODES[_choose("--node-type", v["node_type"], tuple(NODES))]
    slope, alpha, strict = surrogate(v["act_fun"])
    classes = v["num_classes"] if "num_classes" in given else 0
    name = "-".join(part for part in (model, v["dataset"], v["node_type"], str(v["step"]), v["suffix"]) if part)
    half = v["amp"] or v["native_amp"] or v["apex_amp"]
    recipe = seed.compatible(neuron, slope, v["batch_size"], v["lr"]).but(
        name=name, data=data, model=model, classes=classes, seed=v["seed"], steps=v["step"], alpha=alpha, strict=strict,
        threshold=v["threshold"], tau=v["tau"], learn_threshold=v["requires_thres_grad"], encoder=v["encode"],
        norm="time" if v["layer_by_layer"] else "step", flatten_time=v["temporal_flatten"],
        precision="auto" if half else "fp32", epochs=v["epochs"], optimizer=v["opt"], opt_eps=v["opt_eps"] or 0.0,
        momentum=v["momentum"], weight_decay=v["weight_decay"], clip_grad=v["clip_grad"] or 0.0, schedule=v["sched"],
        warmup_epochs=float(v["warmup_epochs"]), warmup_lr=v["warmup_lr"], min_lr=v["min_lr"], decay_epochs=v["decay_epochs"],
        decay_rate=v["decay_rate"], patience_epochs=v["patience_epochs"], grad_noise=v["noisy_grad"],
        ema=v["model_ema_decay"] if v["model_ema"] else 0.0, loss="tet" if v["tet_loss"] else v["loss_fn"], smoothing=v["smoothing"],
    )  # fmt: skip
    changes: dict[str, Any] = dict(seed.data_options(data, classes))
    if SHAPES[data][0] == 2:
        changes |= _event_options(v, tuple(changes.get("event_augment", ())))
    elif any(v[k] for k in ("mix_up", "cut_mix", "event_mix", "rand_aug")):
        raise UserError("--mix-up, --cut-mix, --event-mix and --rand-aug are for event data: use spiketrain train --mixup or --cutmix")
    return recipe.but(**changes)


def _event_options(v: dict[str, Any], basic: tuple[str, ...]) -> dict[str, Any]:
    mixes = tuple(name for name, on in (("mixup", v["mix_up"]), ("cutmix", v["cut_mix"]), ("eventmix", v["event_mix"])) if on)
    return {
        "event_size": v["event_size"],
        "event_augment": (*(("randaugment",) if v["rand_aug"] else ()), *basic, *mixes),
        "event_mix_beta": v["cutmix_beta"],
        "event_mix_prob": v["cutmix_prob"],
        "event_mix_count": v["cutmix_num"],
        "event_mix_components": v["gaussian_n"],
        "event_randaug_n": v["randaug_n"],
        "event_randaug_m": float(v["randaug_m"]),
    }


def dry_run(recipe: Recipe) -> None:
    """The recipe's network, forward and backward over one batch of generated data, without reading a data set."""
    import torch

    from spiketrain import models
    from spiketrain.assemble import network_from
    from spiketrain.objective import Objective

    channels, side, classes = SHAPES[recipe.data]
    side, classes = side or recipe.event_size, recipe.classes or classes
    network = network_from(recipe.but(kernel="reference"), channels, classes)
    shape = (channels, side, side)
    batch = torch.rand(1, *shape) if channels != 2 else torch.rand(recipe.steps, 1, *shape)
    logits = network(batch)
    loss = Objective(recipe.loss, recipe.smoothing)(logits, torch.zeros(1, dtype=torch.long))
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
    print(f"no GPU on this machine: --device {index} uses the CPU", file=sys.stderr)
    return "cpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 2 for a mistake of the user's, 130 when stopped."""
    try:
        values, given = parse(sys.argv[1:] if arguments is None else arguments)
        recipe = to_recipe(values, given)
        place = device(values["device"])
        if values["dry_run"]:
            dry_run(recipe)
            return 0
        from spiketrain.cli import finish
        from spiketrain.train import train

        record = train(
            recipe, data_root=values["data_root"], output=values["output"], device=place, resume=values["resume"] or None,
            download=values["download"], tensorboard=values["tensorboard_dir"] or None,
        )  # fmt: skip
        finish(record)
        return 0
    except UserError as error:
        print(f"main.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
