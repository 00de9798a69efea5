"""Every option of the older script: its names, default, and what becomes of it here.

Four kinds: OURS did not exist there; USED options change the recipe or the run; an IDLE one never decided a result and is
accepted, with a line that says why it does nothing; a REFUSED one is an error unless it is left at its default.
"""

from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["ours", "used", "idle", "refused"]


@dataclass(frozen=True)
class Option:
    """names: as typed; default: the older script's; type: of its value, bool for a switch, list for numbers one after the other;
    text: help, or why the option is idle or refused.
    """

    names: tuple[str, ...]
    default: Any
    type: type
    kind: Kind
    text: str

    @property
    def flag(self) -> str:
        """Its long name."""
        return next(n for n in self.names if n.startswith("--"))

    @property
    def dest(self) -> str:
        """Name of the value, as argparse and a YAML file have it."""
        return self.flag.removeprefix("--").replace("-", "_")


def _options(kind: Kind, *rows: tuple[str, Any, type, str]) -> tuple[Option, ...]:
    return tuple(Option(tuple(names.split()), default, of, kind, text) for names, default, of, text in rows)


OURS = _options(
    "ours",
    ("--dry-run", False, bool, "build everything, run one batch of generated data, print sizes, and exit"),
    ("--data-root", None, str, "where data sets lie; else the environment variable SPIKETRAIN_DATA, else ./data"),
    ("--download", False, bool, "fetch the data set if it is absent"),
    ("--into", None, str, "the run's own folder; begun before, it is continued; done, nothing is run"),
    ("--checkpoint-every", "1", str, "write a checkpoint after every N epochs, or every so much time (90s, 5m, 1h) and epoch"),
    ("--skip-bad-steps", False, bool, "leave out steps whose loss is not finite, where a run else stops"),
)
USED = _options(
    "used",
    ("--dataset", "mnist", str, "cifar10, cifar100, mnist, fashion, dvsc10, dvsg, NCALTECH101, nmnist, NCARS, imnet"),
    ("--model", "mnist_convnet", str, "cifar_convnet, dvs_convnet, mnist_convnet, resnet9, resnet18, resnet34, resnet50"),
    ("--node-type", "LIFNode", str, "IFNode, LIFNode, PLIFNode, ReLUNode"),
    ("--act-fun", "QGateGrad", str, "AtanGrad, QGateGrad, GateGrad, SigmoidGrad, ReLUGrad, STDPGrad, BackEIGateGrad; with or without Grad"),
    ("--step", 10, int, "time steps T"),
    ("-b --batch-size", 128, int, "samples a step; the learning rate is scaled by it"),
    ("--num-classes", 10, int, "number of classes; counts only where it is given, else as many as the data have"),
    ("--device", 0, int, "CUDA index; without a GPU the CPU is used"),
    ("--seed", 42, int, "of everything random"),
    ("--output", "runs", str, "folder for runs (it was a fixed path of the authors' machine)"),
    ("--resume", "", str, "folder of a run: continue it (the older script only evaluated)"),
    ("--tensorboard-dir", "", str, "folder for TensorBoard logs; none are written where it is not given"),
    ("--suffix", "", str, "added to the name of the run"),
    ("--event-size", 48, int, "side of event frames, resized bilinearly"),
    ("--epochs", 200, int, "passes over the training part"),
    ("--opt", "adamw", str, "any of timm's optimisers"),
    ("--opt-eps", 1e-8, float, "epsilon of the optimiser"),
    ("--momentum", 0.9, float, "of optimisers that have one"),
    ("--weight-decay", 1e-4, float, "of weights, not of vectors"),
    ("--clip-grad", None, float, "largest norm of the gradient"),
    ("--noisy-grad", 0.0, float, "standard deviation of noise on every gradient"),
    ("--lr", 5e-3, float, "learning rate per 1024 samples: lr · batch size / 1024 is used"),
    ("--sched", "cosine", str, "cosine, tanh, step, multistep, poly, plateau"),
    ("--warmup-epochs", 5, int, "linear warm-up, a step an epoch"),
    ("--warmup-lr", 1e-6, float, "learning rate of the first epoch"),
    ("--min-lr", 1e-5, float, "learning rate at the end"),
    ("--decay-epochs", 30.0, float, "for --sched step"),
    ("--decay-rate", 0.1, float, "for --sched step, plateau, poly"),
    ("--patience-epochs", 10, int, "for --sched plateau"),
    ("--model-ema", False, bool, "test an average of the weights"),
    ("--model-ema-decay", 0.99996, float, "of that average"),
    ("--amp", False, bool, "half precision: bfloat16 where the processor is fast at it"),
    ("--native-amp", False, bool, "as --amp"),
    ("--apex-amp", False, bool, "as --amp"),
    ("--loss-fn", "ce", str, "ce, mse, onehot-mse, mix"),
    ("--smoothing", 0.1, float, "label smoothing"),
    ("--tet-loss", False, bool, "mean over steps of each step's cross entropy (it crashed; works here)"),
    ("--encode", "direct", str, "direct, rate, ttfs, phase: of images; the last three take them before normalisation"),
    ("--threshold", 0.5, float, "of all nodes"),
    ("--tau", 2.0, float, "of LIFNode; PLIFNode starts with it"),
    ("--requires-thres-grad", False, bool, "train the thresholds"),
    ("--layer-by-layer", False, bool, "statistics of batch norm over all steps at once, else a step at a time"),
    ("--temporal-flatten", False, bool, "make the steps channels of a single one"),
    ("--aa", "rand-m9-mstd0.5-inc1", str, "RandAugment of images (it was fixed; works here); default: of CIFAR only"),
    ("--reprob", 0.25, float, "probability of erasing a part of an image (it was fixed; works here); default: of CIFAR only"),
    ("--remode", "pixel", str, "what erased pixels become: pixel, const, rand (it was fixed; works here)"),
    ("--mixup", 0.0, float, "Beta parameter of mixup on images (it mixed nothing; works here)"),
    ("--cutmix", 0.0, float, "Beta parameter of cutmix on images (it mixed nothing; works here)"),
    ("--mixup-prob", 0.0, float, "probability of mixing a batch of images; counts only where it is given, else 1"),
    ("--mixup-off-epoch", 0, int, "no mixing of images from this epoch on (it crashed; works here)"),
    ("--img-size", 224, int, "imnet: side of what the network sees"),
    ("--no-aug", False, bool, "imnet: train on the middle of each image, without augmentation"),
    ("--scale", [0.08, 1.0], list, "imnet: share of the image that a random part has"),
    ("--ratio", [0.75, 4 / 3], list, "imnet: width by height of that part"),
    ("--hflip", 0.5, float, "imnet: share of images that is mirrored"),
    ("--vflip", 0.0, float, "imnet: share turned upside down (it was never read; works here)"),
    ("--color-jitter", 0.4, float, "imnet: change of brightness, contrast and saturation; nothing where --aa is given"),
    ("--train-interpolation", "random", str, "imnet: of the random part: random, bilinear, bicubic, nearest, box, hamming, lanczos"),
    ("--interpolation", "", str, "imnet: for tests; default: bicubic"),
    ("--crop-pct", None, float, "imnet: side of the part that a test sees by the image's shorter side; default: 0.875"),
    ("--mean", None, list, "imnet: of each channel; default: ImageNet's"),
    ("--std", None, list, "imnet: of each channel; default: ImageNet's"),
    ("-j --workers", 8, int, "imnet: processes that decode images; other data are held whole; default: one a core"),
    ("--mix-up", False, bool, "mix event samples"),
    ("--cut-mix", False, bool, "replace a box of an event sample"),
    ("--event-mix", False, bool, "replace a Gaussian-mixture volume of an event sample"),
    ("--cutmix_beta --cutmix-beta", 2.0, float, "Beta parameter of all three"),
    ("--cutmix_prob --cutmix-prob", 0.5, float, "probability of mixing"),
    ("--cutmix_num --cutmix-num", 1, int, "how often, one after the other"),
    ("--gaussian-n", 3, int, "Gaussians in the mask of --event-mix"),
    ("--rand-aug", False, bool, "RandAugment on event frames"),
    ("--randaug_n --randaug-n", 3, int, "its operations"),
    ("--randaug_m --randaug-m", 15, int, "its level, of 30"),
)

_WHOLE = "data are held whole, and what streams is always prefetched"
IDLE = _options(
    "idle",
    ("--log-interval", 50, int, "progress is shown all the time"),
    ("--recovery-interval", 0, int, "a checkpoint is written every epoch"),
    ("--eval-metric", "top1", str, "the last epoch is what counts, whichever epoch is best"),
    ("-vb --validation-batch-size-multiplier", 1, int, "evaluation gives the same in batches of any size"),
    ("--pin-mem", False, bool, _WHOLE),
    ("--no-prefetcher", False, bool, _WHOLE),
    ("--use-multi-epochs-loader", False, bool, _WHOLE),
    ("--resplit", False, bool, "it was for --aug-splits, which is refused"),
    ("--cooldown-epochs", 10, int, "it changed only a printed number"),
    ("--model-ema-force-cpu", False, bool, "the average stays on the device, with the same values"),
    ("--channels-last", False, bool, "images and weights always lie so in memory"),
    ("--spike-rate", False, bool, "firing rates of every layer are in every record"),
    ("--conf-mat", False, bool, "the confusion matrix is in every record"),
)

_UNREAD = "the older script never read it, and it is not here"
_DROP = "it never reached a network in the older script, and no network here has it"
_NOISE, _CYCLES = "noise on the learning rate is not here", "cycles of the learning rate are not here"
_PROCESSES = "several processes are not here yet"
_UNDRAWN = "the older script drew nothing, and it is not here"
REFUSED = _options(
    "refused",
    ("--pretrained", False, bool, "there are no trained weights to start from"),
    ("--initial-checkpoint", "", str, _UNREAD + ": continue a run with --resume"),
    ("--eval_checkpoint --eval-checkpoint", "", str, "it was never loaded; test a run with: spiketrain eval RUN"),
    ("--eval", False, bool, "it tested random weights; test a run with: spiketrain eval RUN"),
    ("--no-resume-opt", False, bool, "a run is continued whole, with its optimiser"),
    ("--start-epoch", None, int, "continue a run with --resume"),
    ("--gp", None, str, _UNREAD),
    ("--num-gpu", 1, int, _PROCESSES),
    ("--local_rank --local-rank", 0, int, _PROCESSES),
    ("--sync-bn", False, bool, _PROCESSES),
    ("--dist-bn", "", str, _PROCESSES),
    ("--split-bn", False, bool, "it needs --aug-splits, which is refused"),
    ("--save-images", False, bool, "training draws nothing; spiketrain data show draws samples"),
    ("--tta", 0, int, "it averaged different samples"),
    ("--aug-splits", 0, int, "it split batches for --jsd, which is refused"),
    ("--jsd", False, bool, "it needs --aug-splits, which is refused"),
    ("--recount", 1, int, "one part of an image is erased, as in the older script, which never read it"),
    ("--train-portion", 0.9, float, "splits are named here: spiketrain train --split (docs/events.md)"),
    ("--opt-betas", None, list, "only the optimiser's own betas are here"),
    ("--adam-epoch", 1000, int, _UNREAD),
    ("--power", 1.0, float, "the older script never read it; the power of --sched poly is --decay-rate"),
    ("--lr-noise", None, list, _NOISE),
    ("--lr-noise-pct", 0.67, float, _NOISE),
    ("--lr-noise-std", 1.0, float, _NOISE),
    ("--lr-cycle-mul", 1.0, float, _CYCLES),
    ("--lr-cycle-limit", 1, int, _CYCLES),
    ("--bn-tf", False, bool, _UNREAD),
    ("--bn-momentum", None, float, _UNREAD + ": it is 0.1"),
    ("--bn-eps", None, float, _UNREAD + ": it is 1e-5"),
    ("--critical-loss", False, bool, "it recorded activations and used them for nothing"),
    ("--cutmix-minmax", None, list, "it mixed nothing; use --cutmix"),
    ("--mixup-switch-prob", 0.5, float, "it mixed nothing; here mixup and cutmix are drawn equally often where both are on"),
    ("--mixup-mode", "batch", str, "it mixed nothing; here a batch is mixed as a whole"),
    ("--cutmix_noise --cutmix-noise", 0.0, float, "noise after mixing is not here"),
    ("--drop", 0.0, float, _DROP),
    ("--drop-connect", None, float, _DROP),
    ("--drop-path", 0.1, float, _DROP),
    ("--drop-block", None, float, _DROP),
    ("--reset-drop", False, bool, "it crashed: no model had the method it called"),
    ("--newton-maxiter", 20, int, _UNREAD),
    ("--kernel-method", "cuda", str, _UNREAD),
    ("--sigmoid-thres", False, bool, "LIFNode ignored it; give --threshold the sigmoid of your value"),
    ("--n_groups --n-groups", 1, int, "it mixed all time steps in dense convolutions: a step saw the future"),
    ("--adaptive-node", False, bool, "it crashed: the encoder flattened time and the model did not"),
    ("--n-encode-type", "linear", str, "it was for AdaptiveNode, which is not here"),
    ("--n-preact", False, bool, "the older script never used it; every ResNet has its norms before its convolutions"),
    ("--rand-step", False, bool, "it had no effect, or crashed"),
    ("--spike-output", False, bool, "it was overwritten: the output is always logits"),
    ("--sew-cnf", "ADD", str, "no SEW model could be built by the older script, and none is here yet"),
    ("--conv-type", "normal", str, "the older script never used it, and it is not here"),
    ("--node-resume", "", str, "it crashed: no model had the method it called"),
    ("--visualize", False, bool, _UNDRAWN),
    ("--tsne", False, bool, _UNDRAWN),
    ("--mem-dist", False, bool, _UNDRAWN),
    ("--adaptation-info", False, bool, "it printed nothing, and it is not here"),
)

OPTIONS = (*USED, *IDLE, *REFUSED)
EVERY = (*OURS, *OPTIONS)
