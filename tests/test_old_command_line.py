"""The older benchmark's command line: all of its commands, all of its options."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spiketrain.errors import UserError
from spiketrain.recipes import seed

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "img_cls" / "bp"
sys.path.insert(0, str(FOLDER))
import main as old  # noqa: E402

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


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: "-".join(shlex.split(c)[3::2][:6]))
def test_a_command_of_the_older_table_runs(command, capsys):
    words = shlex.split(command)[2:]
    assert old.main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr()
    values = dict(zip(words[::2], words[1::2], strict=True))
    expected = PARAMETERS[values["--model"], values["--dataset"]]
    expected += NODES[values["--model"]] * (values["--node-type"] == "PLIFNode")
    assert f"parameters  {expected:,}\n" in printed.out
    assert f"T={values['--step']}" in printed.out and "nan" not in printed.out
    assert printed.err in ("", "no GPU on this machine: --device 0 uses the CPU\n")


def test_as_a_new_user_types_it():
    for command in (README, COMMANDS[0]):
        words = [sys.executable, *shlex.split(command)[1:], "--dry-run"]
        done = subprocess.run(words, cwd=FOLDER, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def recipe(text: str):
    return old.to_recipe(*old.parse(shlex.split(text)))


def test_defaults():
    r = recipe("--model cifar_convnet --dataset cifar100")
    assert (r.seed, r.epochs, r.batch_size, r.steps, r.threshold, r.tau, r.alpha, r.surrogate) == (42, 200, 128, 10, 0.5, 2.0, 2.0, "qgate")
    assert (r.lr, r.weight_decay, r.min_lr, r.warmup_epochs, r.smoothing) == (6.25e-4, 1e-4, 1e-5, 5.0, 0.1)
    assert (r.norm, r.strict, r.detach, r.precision, r.classes, r.schedule_by) == ("step", True, True, "fp32", 0, "epoch")
    assert (r.crop, r.flip, r.randaugment, r.erase) == (4, True, "rand-m9-mstd0.5-inc1", 0.25)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("--act-fun QGateGradGrad", "surrogate", "qgate"),
        ("--act-fun Atan", "surrogate", "atan"),
        ("--act-fun SigmoidGrad", "strict", False),
        ("--act-fun STDPGrad", "alpha", 1.0),
        ("--node-type PLIFNode --act-fun AtanGrad", "learn_alpha", True),
        ("--node-type PLIFNode --act-fun QGateGrad", "learn_alpha", False),
        ("--layer-by-layer", "norm", "time"),
        ("--tet-loss", "loss", "tet"),
        ("-b 256", "lr", 1.25e-3),
        ("--amp", "precision", "auto"),
        ("--model-ema", "ema", 0.99996),
        ("--num-classes 20", "classes", 20),
        ("--dataset dvsc10 --event-mix --rand-aug", "event_augment", ("randaugment", "crop-flip-rotate", "eventmix")),
        ("--dataset dvsg --mix-up --cut-mix", "event_augment", ("crop", "mixup", "cutmix")),
        ("--dataset NCALTECH101 --num-classes 100", "split", "portion-0.9-objects"),
        ("--dataset NCALTECH101", "balanced", True),
    ],
)
def test_options_change_the_recipe(flags, field, value):
    base = "--model cifar_convnet --dataset cifar10 " if "--dataset" not in flags else "--model dvs_convnet "
    assert getattr(recipe(base + flags), field) == value


OLD_OPTIONS = """
    dataset model pretrained initial-checkpoint resume eval_checkpoint no-resume-opt num-classes gp eval device seed num-gpu
    local_rank output tensorboard-dir suffix log-interval recovery-interval save-images eval-metric tta batch-size
    validation-batch-size-multiplier workers pin-mem no-prefetcher use-multi-epochs-loader img-size crop-pct mean std
    interpolation train-interpolation no-aug scale ratio hflip color-jitter aug-splits vflip aa reprob remode recount resplit
    train-portion event-size opt opt-eps opt-betas momentum weight-decay clip-grad lr sched epochs warmup-epochs warmup-lr min-lr
    cooldown-epochs lr-noise lr-noise-pct lr-noise-std lr-cycle-mul lr-cycle-limit decay-epochs decay-rate patience-epochs
    start-epoch adam-epoch power noisy-grad model-ema model-ema-decay model-ema-force-cpu amp native-amp apex-amp channels-last
    sync-bn dist-bn split-bn bn-tf bn-momentum bn-eps loss-fn smoothing jsd tet-loss critical-loss mixup cutmix cutmix-minmax
    mixup-prob mixup-switch-prob mixup-mode mixup-off-epoch drop drop-connect drop-path drop-block reset-drop newton-maxiter
    kernel-method step encode node-type act-fun threshold tau requires-thres-grad sigmoid-thres layer-by-layer temporal-flatten
    n_groups adaptive-node n-encode-type n-preact rand-step spike-output sew-cnf conv-type node-resume mix-up cut-mix event-mix
    cutmix_beta cutmix_prob cutmix_num cutmix_noise gaussian-n rand-aug randaug_n randaug_m spike-rate visualize tsne conf-mat
    mem-dist adaptation-info
""".split()


def test_no_option_of_the_older_script_is_missing():
    flags = {flag for option in old.OPTIONS for flag in option.names}
    assert [name for name in OLD_OPTIONS if "--" + name not in flags] == []
    assert {"-b", "-vb", "-j"} <= flags


@pytest.mark.parametrize("option", old.REFUSED, ids=lambda o: o.dest)
def test_what_is_refused_is_refused_by_name_in_one_line(option, capsys):
    value = [] if option.type is bool else ["7" if option.type is not str else "x"]
    assert old.main([option.names[0], *value, "--dry-run"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"main.py: {option.names[0]} is refused: ") and line.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--modle resnet18", "did you mean '--model'"),
        ("--model resnet81", "did you mean 'resnet18'"),
        ("--model sew_resnet18", "SEW"),
        ("--node-type LIFNod", "did you mean 'LIFNode'"),
        ("--node-type PSU", "generate_matrix"),
        ("--act-fun QGat", "did you mean 'QGate'"),
        ("--act-fun RoundGrad", "no spike"),
        ("--dataset cifar01", "did you mean 'cifar10'"),
        ("--dataset imnet", "ImageNet"),
        ("--step four", "--step"),
        ("--tau 0.5 --model cifar_convnet --dataset cifar10", "tau must be at least 1"),
        ("--event-mix --dataset cifar10 --model cifar_convnet", "for event data"),
        ("--config nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_mistakes_are_one_line(flags, said, capsys):
    assert old.main([*shlex.split(flags), "--dry-run"]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1


def test_a_configuration_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("model: resnet18\ndataset: cifar10\nstep: 6\nlr: 0.001\n")
    r = old.to_recipe(*old.parse(["-c", str(file), "--step", "3"]))
    assert (r.model, r.steps, r.lr) == ("resnet18", 3, pytest.approx(1.25e-4))
    wrongs = {"stepp: 6": "did you mean 'step'", "step: six": "step must be int", "- 1": "names and values", "a: [": "read"}
    for text, said in wrongs.items():
        file.write_text(text)
        with pytest.raises(UserError, match=said):
            old.parse(["-c", str(file)])


def test_it_trains(tmp_path, capsys):
    words = ["--model", "mnist_convnet", "--dataset", "cifar10", "--step", "1", "--epochs", "1"]
    assert old.main([*words, "--data-root", str(tmp_path), "--output", str(tmp_path)]) == 2
    assert "cifar-10-batches-py" in capsys.readouterr().err
