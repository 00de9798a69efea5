"""The older benchmark's command line: all of its commands, all of its options."""

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spiketrain.errors import UserError
from spiketrain.recipes import Recipe, seed
from spiketrain.record import Record

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "img_cls" / "bp"
sys.path.insert(0, str(FOLDER))
import main as old  # noqa: E402
import names  # noqa: E402
import options  # noqa: E402

README = "python main.py --model dvs_convnet --node-type LIFNode --dataset dvsc10 --step 10 --batch-size 128 --act-fun QGate --device 0"
COMMANDS = [*(row.command for row in seed.rows()), README]
PARAMETERS = {
    # model, data set → with ten classes or the data set's own; of LIF
    ("cifar_convnet", "cifar10"): 19_489_562, ("cifar_convnet", "cifar100"): 19_581_812, ("resnet18", "cifar10"): 11_173_104,
    ("resnet18", "cifar100"): 11_219_274, ("dvs_convnet", "dvsc10"): 7_532_826, ("resnet18", "dvsc10"): 11_172_528,
    ("dvs_convnet", "dvsg"): 7_533_339, ("resnet18", "dvsg"): 11_172_528 + 513,
    ("dvs_convnet", "NCALTECH101"): 7_532_826 + 90 * 513, ("resnet18", "NCALTECH101"): 11_172_528 + 90 * 513,
}  # fmt: skip
NODES = {"cifar_convnet": 8, "dvs_convnet": 8, "resnet18": 19}
MEGAMACS = {("cifar_convnet", True): 1366.04, ("resnet18", True): 555.42, ("dvs_convnet", False): 769.73, ("resnet18", False): 1248.37}
"""Model, whether the data are CIFAR → millions of multiply-accumulates a step, of convolutions and (to a ten-thousandth) the head."""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: "-".join(shlex.split(c)[3::2][:6]))
def test_a_command_of_the_older_table_runs(command, capsys):
    words = shlex.split(command)[2:]
    assert old.main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr()
    values = dict(zip(words[::2], words[1::2], strict=True))
    model, data = values["--model"], values["--dataset"]
    expected = PARAMETERS[model, data] + NODES[model] * (values["--node-type"] == "PLIFNode")
    assert f"parameters  {expected:,}\n" in printed.out
    macs = printed.out.split("MACs a step ")[1].splitlines()[0].replace(",", "")
    assert int(macs) / 1e6 == pytest.approx(MEGAMACS[model, data.startswith("cifar")], rel=2e-4)
    assert f"T={values['--step']}" in printed.out and "nan" not in printed.out
    assert printed.err in ("", "no GPU on this machine: --device 0 uses the CPU\n")


def test_as_a_new_user_types_it():
    for command in (README, COMMANDS[0]):
        words = [sys.executable, *shlex.split(command)[1:], "--dry-run"]
        done = subprocess.run(words, cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def recipe(text: str) -> Recipe:
    return old.to_recipe(*old.parse(shlex.split(text)))


def test_defaults():
    r = recipe("--model cifar_convnet --dataset cifar100")
    assert (r.seed, r.epochs, r.batch_size, r.steps, r.threshold, r.tau, r.alpha, r.surrogate) == (42, 200, 128, 10, 0.5, 2.0, 2.0, "qgate")
    assert (r.lr, r.weight_decay, r.min_lr, r.warmup_epochs, r.warmup_lr, r.smoothing) == (6.25e-4, 1e-4, 1e-5, 5.0, 1e-6, 0.1)
    assert (r.norm, r.strict, r.detach, r.reset, r.precision, r.classes) == ("step", True, True, "hard", "fp32", 0)
    assert (r.optimizer, r.opt_eps, r.schedule, r.schedule_by, r.clip_grad, r.ema) == ("adamw", 1e-8, "cosine", "epoch", 0.0, 0.0)
    assert (r.crop, r.flip, r.randaugment, r.erase, r.normalize) == (4, True, "rand-m9-mstd0.5-inc1", 0.25, "imagenet")
    assert (r.loss, r.mixup, r.cutmix, r.encoder, r.model, r.neuron) == ("ce", 0.0, 0.0, "direct", "cifar_convnet", "lif")


@pytest.mark.parametrize("command", COMMANDS[:-1])
def test_a_command_differs_from_its_row_only_in_what_became_of_the_older_script(command):
    """The rows' recipes have the networks, the epochs and the weight decay that the table was made with."""
    row = next(r for r in seed.rows() if r.command == command)
    now, then = recipe(" ".join(shlex.split(command)[2:])).to_dict(), seed.recipe(row).to_dict()
    changed = {k for k in now if now[k] != then[k]}
    assert changed - {"name", "seed", "epochs", "weight_decay", "model", "classes"} == set()
    assert now["classes"] == (row.classes if "--num-classes" in command else 0)


IMAGES = "--model cifar_convnet --dataset cifar10 "
EVENTS = "--model dvs_convnet --dataset dvsc10 "
IMNET = "--model resnet18 --dataset imnet "


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (IMAGES + "--act-fun QGateGradGrad", {"surrogate": "qgate"}),
        (IMAGES + "--act-fun Atan", {"surrogate": "atan", "strict": True}),
        (IMAGES + "--act-fun GateGrad", {"surrogate": "gate", "alpha": 2.0}),
        (IMAGES + "--act-fun SigmoidGrad", {"surrogate": "sigmoid", "strict": False}),
        (IMAGES + "--act-fun ReLUGrad", {"surrogate": "relu", "strict": False, "alpha": 2.0}),
        (IMAGES + "--act-fun STDPGrad", {"surrogate": "relu", "strict": True, "alpha": 1.0}),
        (IMAGES + "--act-fun BackEIGateGrad", {"surrogate": "rectangle", "alpha": 1.0}),
        (IMAGES + "--node-type PLIFNode --act-fun AtanGrad", {"neuron": "plif", "learn_alpha": True}),
        (IMAGES + "--node-type PLIFNode --act-fun QGateGrad", {"learn_alpha": False}),
        (IMAGES + "--node-type LIFNode --act-fun AtanGrad", {"learn_alpha": False}),
        (IMAGES + "--node-type IFNode", {"neuron": "if"}),
        (IMAGES + "--node-type ReLUNode", {"neuron": "relu"}),
        (IMAGES + "--num-classes 20", {"classes": 20}),
        (IMAGES + "--num-classes 0", {"classes": 0}),
        (IMAGES + "--mixup 0.8", {"mixup": 0.8, "mix_prob": 1.0}),
        (IMAGES + "--cutmix 1 --mixup-prob 0.3 --mixup-off-epoch 9", {"cutmix": 1.0, "mix_prob": 0.3, "mix_off_epoch": 9}),
        (IMAGES + "--aa '' --reprob 0", {"randaugment": "", "erase": 0.0, "crop": 4}),
        ("--aa rand-m5-n1", {"data": "mnist", "model": "mnist_convnet", "randaugment": "rand-m5-n1", "crop": 4}),
        ("--dataset fashion", {"flip": True, "normalize": "none", "randaugment": "", "erase": 0.0}),
        (EVENTS + "--event-mix --rand-aug", {"event_augment": ("randaugment", "crop-flip-rotate", "eventmix")}),
        (EVENTS, {"frame_resize": "bilinear", "event_size": 48, "randaugment": "", "crop": 0}),
        ("--model dvs_convnet --dataset dvsg --mix-up --cut-mix", {"event_augment": ("crop", "mixup", "cutmix")}),
        ("--model dvs_convnet --dataset NCARS", {"data": "ncars", "event_augment": ("crop-flip-rotate",)}),
        ("--model dvs_convnet --dataset NCALTECH101 --num-classes 100", {"split": "portion-0.9-objects", "balanced": True}),
        ("--model dvs_convnet --dataset NCALTECH101", {"split": "portion-0.9", "balanced": True, "classes": 0}),
        (IMNET, {"data": "imnet", "model": "resnet18_imagenet", "image_size": 224, "area": (0.08, 1.0), "flip": True, "flip_share": 0.5}),
        (IMNET, {"color_jitter": 0.4, "randaugment": "", "erase": 0.0, "interpolation": "random", "test_crop": 0.875, "workers": 0}),
        (IMNET + "--scale 0.5 1 --hflip 0", {"area": (0.5, 1.0), "flip": False}),
        (IMNET + "--no-aug", {"random_crop": False, "flip": False, "color_jitter": 0.0, "erase": 0.0}),
        (IMNET + "--aa augmix-m3 --reprob 0.2", {"randaugment": "augmix-m3", "erase": 0.2}),
    ],
)
def test_options_change_the_recipe(flags, expected):
    r = recipe(flags)
    assert {field: getattr(r, field) for field in expected} == expected


OTHER = {
    # option → another value, and what else it needs
    "dataset": "fashion", "model": "resnet9", "node_type": "IFNode", "act_fun": "Atan", "step": "3", "batch_size": "64",
    "num_classes": "11", "seed": "1", "suffix": "x", "event_size": "32", "epochs": "3", "opt": "sgd", "opt_eps": "1e-6",
    "momentum": "0.8", "weight_decay": "0.01", "clip_grad": "1", "noisy_grad": "0.1", "lr": "0.01", "sched": "step", "warmup_epochs": "1",
    "warmup_lr": "1e-5", "min_lr": "0", "decay_epochs": "10", "decay_rate": "0.2", "patience_epochs": "3",
    "model_ema_decay": "0.99 --model-ema", "loss_fn": "mix", "smoothing": "0", "encode": "ttfs", "threshold": "1", "tau": "3",
    "aa": "rand-m5", "reprob": "0.1", "remode": "const", "mixup": "0.5", "cutmix": "0.5", "mixup_prob": "0.5 --mixup 1",
    "mixup_off_epoch": "5 --mixup 1", "cutmix_beta": "1", "cutmix_prob": "1", "cutmix_num": "2", "gaussian_n": "5", "randaug_n": "2",
    "randaug_m": "10", "img_size": "96", "scale": "0.2 0.9", "ratio": "1 1", "hflip": "0.1", "vflip": "0.1", "color_jitter": "0",
    "train_interpolation": "bilinear", "interpolation": "lanczos", "crop_pct": "1", "mean": "0 0 0", "std": "1 1 1", "workers": "3",
}  # fmt: skip
OF_THE_RUN = {"device", "output", "resume", "tensorboard_dir"}
FOR_EVENTS = {*old.EVENTS_ONLY, *old.EVENT_NUMBERS}


@pytest.mark.parametrize("option", [o for o in options.USED if o.dest not in OF_THE_RUN], ids=lambda o: o.dest)
def test_no_used_option_is_ignored(option):
    context = EVENTS if option.dest in FOR_EVENTS else IMNET if option.dest in old.IMNET_ONLY else ""
    flag = f"{option.flag} {OTHER.get(option.dest, '')}"
    without = context + (flag.split(" ", 2)[2] if flag.count(" ") > 1 and option.type is not list else "")
    changed, plain = recipe(context + flag).to_dict(), recipe(without).to_dict()
    differ = {k for k in changed if changed[k] != plain[k]}
    assert differ == {"name"} if option.dest == "suffix" else differ - {"name"}


def test_what_is_not_in_the_recipe_reaches_train(monkeypatch):

    seen = {}
    monkeypatch.setattr(sys.modules["spiketrain.train"], "train", lambda r, **rest: seen.update(rest))
    monkeypatch.setattr(old, "finish", lambda record: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    words = "--device 3 --output o --resume r --tensorboard-dir t --data-root d --download".split()
    assert old.main(words) == 0
    assert seen == {
        "device": "cuda:3", "output": "o", "resume": "r", "tensorboard": "t", "data_root": "d", "download": True,
        "into": None, "checkpoint_every": "1", "skip_bad_steps": False, "command": "main.py " + " ".join(words),
    }  # fmt: skip


OLD_OPTIONS = """
    dataset model pretrained initial-checkpoint resume eval_checkpoint no-resume-opt num-classes gp eval device seed num-gpu local_rank
    output tensorboard-dir suffix log-interval recovery-interval save-images eval-metric tta batch-size
    validation-batch-size-multiplier workers pin-mem no-prefetcher use-multi-epochs-loader img-size crop-pct mean std interpolation
    train-interpolation no-aug scale ratio hflip color-jitter aug-splits vflip aa reprob remode recount resplit train-portion event-size
    opt opt-eps opt-betas momentum weight-decay clip-grad lr sched epochs warmup-epochs warmup-lr min-lr cooldown-epochs lr-noise
    lr-noise-pct lr-noise-std lr-cycle-mul lr-cycle-limit decay-epochs decay-rate patience-epochs start-epoch adam-epoch power
    noisy-grad model-ema model-ema-decay model-ema-force-cpu amp native-amp apex-amp channels-last sync-bn dist-bn split-bn bn-tf
    bn-momentum bn-eps loss-fn smoothing jsd tet-loss critical-loss mixup cutmix cutmix-minmax mixup-prob mixup-switch-prob mixup-mode
    mixup-off-epoch drop drop-connect drop-path drop-block reset-drop newton-maxiter kernel-method step encode node-type act-fun
    threshold tau requires-thres-grad sigmoid-thres layer-by-layer temporal-flatten n_groups adaptive-node n-encode-type n-preact
    rand-step spike-output sew-cnf conv-type node-resume mix-up cut-mix event-mix cutmix_beta cutmix_prob cutmix_num cutmix_noise
    gaussian-n rand-aug randaug_n randaug_m spike-rate visualize tsne conf-mat mem-dist adaptation-info config
""".split()


def test_no_option_of_the_older_script_is_missing():
    assert len(OLD_OPTIONS) == len(set(OLD_OPTIONS)) == 142
    flags = {flag for action in old.parser()._actions for flag in action.option_strings}
    assert [name for name in OLD_OPTIONS if "--" + name not in flags] == []
    assert {"-b", "-vb", "-j", "-c"} <= flags
    assert len(options.OPTIONS) == 141 == len({o.dest for o in options.OPTIONS})


def another(option) -> list[str]:
    """A value that is not the option's default, as words of a command."""
    return {bool: [], list: ["7", "8"], str: ["x"]}.get(option.type, ["7"])


@pytest.mark.parametrize("option", options.REFUSED, ids=lambda o: o.dest)
def test_what_is_refused_is_refused_by_name_in_one_line(option, capsys):
    assert old.main([option.flag, *another(option), "--dry-run"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"main.py: {option.flag} is refused: ") and line.count("\n") == 1


@pytest.mark.parametrize("option", options.IDLE, ids=lambda o: o.dest)
def test_what_does_nothing_says_so_in_one_line(option):
    values, given = old.parse([option.flag, *another(option)])
    assert old.to_recipe(values, given) == recipe("")
    assert old.remarks(values) == [f"{option.flag} changes nothing here: {option.text}"]


def test_defaults_may_be_given():
    words = [w for o in (*options.IDLE, *options.REFUSED) if o.type is not bool and o.default is not None for w in (o.flag, *_words(o))]
    values, given = old.parse(words)
    assert old.to_recipe(values, given) == recipe("") and old.remarks(values) == []


def _words(option) -> list[str]:
    return [str(v) for v in option.default] if option.type is list else [str(option.default)]


@pytest.mark.parametrize(("flag", "name"), [(flag, name) for flag, reasons in names.REFUSED_NAMES.items() for name in reasons])
def test_a_name_of_the_older_script_is_refused_with_a_reason(flag, name, capsys):
    assert old.main([flag, name, "--dry-run"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"main.py: {flag} {name} is refused: ") and line.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--modle resnet18", "did you mean '--model'"),
        ("--bathc-size=4", "did you mean '--batch-size'"),
        ("--model resnet81", "did you mean 'resnet18'"),
        ("--node-type LIFNod", "did you mean 'LIFNode'"),
        ("--act-fun QGat", "did you mean 'QGate'"),
        ("--dataset cifar01", "did you mean 'cifar10'"),
        ("--step four", "--step"),
        ("--step 0", "steps must be at least 1"),
        ("--step", "--step"),
        ("--tau 0.5", "tau must be at least 1"),
        ("--node-type PLIFNode --tau 1", "tau must be more than 1"),
        ("--loss-fn cross", "unknown loss 'cross'"),
        ("--sched cosin", "did you mean 'cosine'"),
        ("--encode poisson", "unknown encoder 'poisson'"),
        ("--tet-loss --loss-fn mse", "--tet-loss and --loss-fn mse"),
        ("--event-mix " + IMAGES, "--event-mix is for event data"),
        ("--mixup 1 " + EVENTS, "--mixup is for images"),
        ("--encode rate " + EVENTS, "--encode is for images"),
        ("--mixup-prob 0.5", "need --mixup or --cutmix"),
        ("--aa augmix", "rand-m9-mstd0.5-inc1"),
        ("--model mnist_convnet --dataset cifar10", "a side of 28 to 31 pixels"),
        ("--event-size 8 " + EVENTS, "a side of at least 16 pixels"),
        ("--event-size 0 " + EVENTS, "a side of at least 16 pixels"),
        ("--num-classes 10 --model resnet9 --dataset cifar100", "has 100"),
        ("--config nowhere.yaml", "nowhere.yaml"),
        (IMNET + "--no-aug --hflip 0.2", "--no-aug and --hflip exclude each other"),
        (IMNET + "--scale 0.5", "area must be two numbers"),
        (IMNET + "--interpolation cubic", "did you mean 'bicubic'"),
        (IMNET + "--aa rnd", "timm's policies"),
        ("--model mnist_convnet --dataset imnet", "a side of 28 to 31 pixels"),
    ],
)
def test_mistakes_are_one_line(flags, said, capsys):
    assert old.main([*shlex.split(flags), "--dry-run"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("no GPU")]
    assert len(lines) == 1 and said in lines[0] and lines[0].startswith("main.py: ")


@pytest.mark.parametrize(
    "flags",
    [
        "--step 2",
        "--model resnet18 --dataset imnet --img-size 64 --step 1",
        "--model mnist_convnet --dataset nmnist --event-size 28 --step 2",
        "--model dvs_convnet --dataset dvsc10 --event-size 16 --step 2 --temporal-flatten",
        "--model resnet9 --dataset fashion --step 2 --layer-by-layer --encode ttfs --tet-loss --node-type PLIFNode --act-fun ReLUGrad",
        "--model resnet34 --dataset NCARS --event-size 16 --step 1 --node-type ReLUNode --loss-fn mse",
        "--model resnet50 --dataset NCALTECH101 --event-size 16 --step 1 --requires-thres-grad --act-fun STDP",
    ],
)
def test_other_networks_run(flags, capsys):
    assert old.main([*shlex.split(flags), "--dry-run"]) == 0
    assert "loss" in capsys.readouterr().out


def test_a_configuration_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: resnet18\ndataset: cifar10\nstep: 6\nlr: 1e-3\nclip_grad: null\ndecay_epochs: 20\n")
    r = old.to_recipe(*old.parse(["-c", str(file), "--step", "3"]))
    assert (r.model, r.steps, r.lr, r.decay_epochs) == ("resnet18", 3, pytest.approx(1.25e-4), 20.0)
    wrongs = {
        "stepp: 6": "did you mean 'step'", "step: six": "step must be int", "step: true": "step must be int",
        "lr: null": "lr must be float", "lr: fast": "lr must be float", "lr: false": "lr must be float",
        "mixup: [1]": "mixup must be float", "- 1": "names and values", "a: [": "cannot be read", "drop: 0.5": "--drop is refused",
    }  # fmt: skip
    for text, said in wrongs.items():
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            old.parse(["-c", str(file)])


def _idx(file: Path, values: np.ndarray) -> None:
    """An MNIST file of bytes: magic number, sizes (big-endian), values."""
    head = np.array([0x0800 + values.ndim, *values.shape], ">i4")
    file.write_bytes(head.tobytes() + values.astype(np.uint8).tobytes())


def test_it_trains_and_continues(tmp_path, capsys):
    words = ["--step", "2", "--epochs", "1", "--batch-size", "8", "--data-root", str(tmp_path), "--output", str(tmp_path / "runs")]
    assert old.main(words) == 2
    assert "data set mnist is not whole in" in capsys.readouterr().err
    raw, rng = tmp_path / "MNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for part, count in (("train", 24), ("t10k", 10)):
        _idx(raw / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28)))
        _idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    assert old.main(words) == 0
    run = Path(capsys.readouterr().out.splitlines()[-1]).parent
    record = Record.load(run)
    assert record.command.startswith("main.py --step 2") and record.parameters == 13_016_722 and record.seed == 42
    assert old.main([*words, "--resume", str(run)]) == 0
    assert Record.load(run).test_accuracy == record.test_accuracy
