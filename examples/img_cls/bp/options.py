"""Every option of the older script: its names, default, and what becomes of it here.

Three kinds: USED options change the recipe; a HARMLESS one had or has no effect on results and is accepted, its help says
why; a REFUSED one is an error unless it is left at its default, with the reason.
"""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["used", "harmless", "refused"]


@dataclass(frozen=True)
class Option:
    """names: as typed; default: the older script's; type: of its value, bool for a switch; text: help, or why it is refused."""

    names: tuple[str, ...]
    default: Any
    type: type
    kind: Kind
    text: str

    @property
    def dest(self) -> str:
        """Name of the value, as argparse and a YAML file have it."""
        longest = next(n for n in self.names if n.startswith("--"))
        return longest.removeprefix("--").replace("-", "_")


def _options(kind: Kind, *rows: tuple[str, Any, type, str]) -> tuple[Option, ...]:
    return tuple(Option(tuple(names.split()), default, of, kind, text) for names, default, of, text in rows)


USED = _options(
    "used",
    ("--dataset", "mnist", str, "cifar10, cifar100, mnist, fashion, dvsc10, dvsg, NCALTECH101, nmnist, NCARS"),
    ("--model", "mnist_convnet", str, "cifar_convnet, dvs_convnet, mnist_convnet, resnet9, resnet18, resnet34, resnet50"),
    ("--resume", "", str, "folder of a run: continue it (the older script only evaluated)"),
    ("--num-classes", 10, int, "number of classes; counts only where it is given, else as many as the data have"),
    ("--device", 0, int, "CUDA index; without a GPU the CPU is used"),
    ("--seed", 42, int, "of everything random"),
    ("--output", "runs", str, "folder for runs"),
    ("--tensorboard-dir", "", str, "folder for TensorBoard logs; none are written where it is not given"),
    ("--suffix", "", str, "added to the name of the run"),
    ("-b --batch-size", 128, int, "samples a step; the learning rate is scaled by it"),
    ("--event-size", 48, int, "side of event frames, resized bilinearly"),
    ("--opt", "adamw", str, "any of timm's optimisers"),
    ("--opt-eps", 1e-8, float, "epsilon of the optimiser"),
    ("--momentum", 0.9, float, "of optimisers that have one"),
    ("--weight-decay", 1e-4, float, "of weights, not of vectors"),
    ("--clip-grad", None, float, "largest norm of the gradient"),
    ("--lr", 5e-3, float, "learning rate per 1024 samples: lr · batch size / 1024 is used"),
    ("--sched", "cosine", str, "cosine, tanh, step, multistep, poly, plateau"),
    ("--epochs", 200, int, "passes over the training part"),
    ("--warmup-epochs", 5, int, "linear warm-up, a step an epoch"),
    ("--warmup-lr", 1e-6, float, "learning rate of the first epoch"),
    ("--min-lr", 1e-5, float, "learning rate at the end"),
    ("--decay-epochs", 30.0, float, "for --sched step"),
    ("--decay-rate", 0.1, float, "for --sched step, plateau, poly"),
    ("--patience-epochs", 10, int, "for --sched plateau"),
    ("--noisy-grad", 0.0, float, "standard deviation of noise on every gradient"),
    ("--model-ema", False, bool, "test an average of the weights"),
    ("--model-ema-decay", 0.99996, float, "of that average"),
    ("--amp", False, bool, "half precision: bfloat16 where the processor is fast at it"),
    ("--native-amp", False, bool, "as --amp"),
    ("--channels-last", False, bool, "memory layout; also right for events"),
    ("--loss-fn", "ce", str, "ce, mse, onehot-mse, mix"),
    ("--smoothing", 0.1, float, "label smoothing"),
    ("--tet-loss", False, bool, "mean over steps of each step's loss (it was broken; works here)"),
    ("--step", 10, int, "time steps T"),
    ("--encode", "direct", str, "direct, rate, ttfs, phase (the last three take the image before normalisation)"),
    ("--node-type", "LIFNode", str, "IFNode, LIFNode, PLIFNode, ReLUNode"),
    ("--act-fun", "QGateGrad", str, "AtanGrad, QGateGrad, GateGrad, SigmoidGrad, ReLUGrad, STDPGrad, BackEIGateGrad; with or without Grad"),
    ("--threshold", 0.5, float, "of all nodes"),
    ("--tau", 2.0, float, "of LIFNode; PLIFNode starts with it"),
    ("--requires-thres-grad", False, bool, "train the thresholds"),
    ("--layer-by-layer", False, bool, "statistics of batch norm over all steps at once, else a step at a time"),
    ("--temporal-flatten", False, bool, "make the steps channels of a single one"),
    ("--mix-up", False, bool, "mix event samples"),
    ("--cut-mix", False, bool, "replace a box of an event sample"),
    ("--event-mix", False, bool, "replace a Gaussian-mixture volume of an event sample"),
    ("--cutmix_beta", 2.0, float, "Beta parameter of all three"),
    ("--cutmix_prob", 0.5, float, "probability of mixing"),
    ("--cutmix_num", 1, int, "how often, one after the other"),
    ("--gaussian-n", 3, int, "Gaussians in the mask of --event-mix"),
    ("--rand-aug", False, bool, "RandAugment on event frames"),
    ("--randaug_n --randaug-n", 3, int, "its operations"),
    ("--randaug_m --randaug-m", 15, int, "its level, of 30"),
)

_FOLLOWS = "follows from the data set or the machine here"
HARMLESS = _options(
    "harmless",
    ("--gp", None, str, "was never read"),
    ("--initial-checkpoint", "", str, "was never read"),
    ("--no-resume-opt", False, bool, "had no effect on training"),
    ("--local_rank --local-rank", 0, int, "torchrun passes it by the environment"),
    ("--log-interval", 50, int, "progress is live here"),
    ("--recovery-interval", 0, int, "a checkpoint is written every epoch here"),
    ("--save-images", False, bool, "nothing is drawn; spiketrain data show does that"),
    ("--eval-metric", "top1", str, "the last epoch is what counts here"),
    ("-vb --validation-batch-size-multiplier", 1, int, _FOLLOWS),
    ("-j --workers", 8, int, "data are held whole here"),
    ("--pin-mem", False, bool, "data are held whole here"),
    ("--no-prefetcher", False, bool, "data are held whole here"),
    ("--use-multi-epochs-loader", False, bool, "data are held whole here"),
    ("--resplit", False, bool, "had no effect"),
    ("--cooldown-epochs", 10, int, "changed only a printed number"),
    ("--adam-epoch", 1000, int, "was never read"),
    ("--power", 1.0, float, "was never read"),
    ("--model-ema-force-cpu", False, bool, "the average stays on the device"),
    ("--apex-amp", False, bool, "apex is gone; use --amp"),
    ("--bn-tf", False, bool, "was never read"),
    ("--bn-momentum", None, float, "was never read"),
    ("--bn-eps", None, float, "was never read"),
    ("--vflip", 0.0, float, "was never read"),
    ("--aa", "rand-m9-mstd0.5-inc1", str, "was never read: CIFAR has this policy"),
    ("--reprob", 0.25, float, "was never read: CIFAR has this value"),
    ("--remode", "pixel", str, "was never read: CIFAR has this value"),
    ("--recount", 1, int, "was never read"),
    ("--critical-loss", False, bool, "switched recording on and used it for nothing"),
    ("--drop", 0.0, float, "never reached a model"),
    ("--drop-connect", None, float, "never reached a model"),
    ("--drop-path", 0.1, float, "never reached a model"),
    ("--drop-block", None, float, "never reached a model"),
    ("--newton-maxiter", 20, int, "was never read"),
    ("--kernel-method", "cuda", str, "was never read"),
    ("--n-encode-type", "linear", str, "was read by AdaptiveNode only"),
    ("--n-preact", False, bool, "was never used"),
    ("--spike-output", False, bool, "was overwritten: the output is always logits"),
    ("--conv-type", "normal", str, "was never used"),
    ("--spike-rate", False, bool, "rates of every layer are in every record here"),
    ("--visualize", False, bool, "drew nothing"),
    ("--tsne", False, bool, "drew nothing"),
    ("--conf-mat", False, bool, "the confusion matrix is in every record here"),
    ("--mem-dist", False, bool, "drew nothing"),
    ("--adaptation-info", False, bool, "was never used"),
)

_IMNET = "took effect for --dataset imnet only, which is not here yet"
REFUSED = _options(
    "refused",
    ("--pretrained", False, bool, "there are no trained weights to start from"),
    ("--eval_checkpoint --eval-checkpoint", "", str, "it was never loaded; test a run with: spiketrain eval RUN"),
    ("--eval", False, bool, "it tested random weights; test a run with: spiketrain eval RUN"),
    ("--num-gpu", 1, int, "DataParallel is not here"),
    ("--tta", 0, int, "it averaged different samples"),
    ("--img-size", 224, int, _IMNET),
    ("--crop-pct", None, float, _IMNET),
    ("--mean", None, str, _IMNET),
    ("--std", None, str, _IMNET),
    ("--interpolation", "", str, _IMNET),
    ("--train-interpolation", "random", str, _IMNET),
    ("--no-aug", False, bool, _IMNET),
    ("--scale", None, str, _IMNET),
    ("--ratio", None, str, _IMNET),
    ("--hflip", 0.5, float, _IMNET),
    ("--color-jitter", 0.4, float, _IMNET),
    ("--aug-splits", 0, int, _IMNET),
    ("--jsd", False, bool, "it needs --aug-splits, which " + _IMNET),
    ("--train-portion", 0.9, float, "splits are named here: spiketrain train --split (docs/events.md)"),
    ("--opt-betas", None, str, "only the optimiser's own betas are here"),
    ("--lr-noise", None, str, "noise on the learning rate is not here"),
    ("--lr-noise-pct", 0.67, float, "noise on the learning rate is not here"),
    ("--lr-noise-std", 1.0, float, "noise on the learning rate is not here"),
    ("--lr-cycle-mul", 1.0, float, "cycles of the learning rate are not here"),
    ("--lr-cycle-limit", 1, int, "cycles of the learning rate are not here"),
    ("--start-epoch", None, int, "continue a run with --resume"),
    ("--sync-bn", False, bool, "several processes are not here yet"),
    ("--dist-bn", "", str, "several processes are not here yet"),
    ("--split-bn", False, bool, "it needs --aug-splits, which " + _IMNET),
    ("--mixup", 0.0, float, "it mixed nothing; spiketrain train --mixup does"),
    ("--cutmix", 0.0, float, "it mixed nothing; spiketrain train --cutmix does"),
    ("--cutmix-minmax", None, str, "it mixed nothing"),
    ("--mixup-prob", 0.0, float, "it mixed nothing; spiketrain train --mix-prob does"),
    ("--mixup-switch-prob", 0.5, float, "it mixed nothing"),
    ("--mixup-mode", "batch", str, "it mixed nothing"),
    ("--mixup-off-epoch", 0, int, "it crashed; spiketrain train --mix-off-epoch works"),
    ("--reset-drop", False, bool, "it crashed: no model had the method it called"),
    ("--sigmoid-thres", False, bool, "LIFNode ignored it; give --threshold the sigmoid of your value"),
    ("--n_groups --n-groups", 1, int, "it mixed all time steps in dense convolutions: a step saw the future"),
    ("--adaptive-node", False, bool, "it crashed: the encoder flattened time and the model did not"),
    ("--rand-step", False, bool, "it had no effect, or crashed"),
    ("--sew-cnf", "ADD", str, "no SEW model could be built by the older script, and none is here yet"),
    ("--node-resume", "", str, "it crashed: no model had the method it called"),
    ("--cutmix_noise --cutmix-noise", 0.0, float, "noise after mixing is not here"),
)

OPTIONS = (*USED, *HARMLESS, *REFUSED)
