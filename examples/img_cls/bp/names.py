"""Names of the older script: what they are here, or why they are refused."""

from collections.abc import Iterable
from dataclasses import dataclass

from spiketrain.errors import UserError, unknown


@dataclass(frozen=True)
class Data:
    """A data set: its name here, and its shape, which --dry-run generates. side 0: that of --event-size."""

    name: str
    channels: int
    side: int
    classes: int

    @property
    def events(self) -> bool:
        """True where it consists of recordings, not of images."""
        return self.side == 0


DATA = {
    "cifar10": Data("cifar10", 3, 32, 10),
    "cifar100": Data("cifar100", 3, 32, 100),
    "mnist": Data("mnist", 1, 28, 10),
    "fashion": Data("fashion", 1, 28, 10),
    "dvsc10": Data("dvsc10", 2, 0, 10),
    "dvsg": Data("dvsg", 2, 0, 11),
    "NCALTECH101": Data("NCALTECH101", 2, 0, 101),
    "nmnist": Data("nmnist", 2, 0, 10),
    "NCARS": Data("ncars", 2, 0, 2),
    "imnet": Data("imnet", 3, 224, 1000),
}
SIDES = {
    "cifar_convnet": (8, None),
    "dvs_convnet": (16, None),
    "mnist_convnet": (28, 31),
    "resnet9": (1, None),
    "resnet18": (1, None),
    "resnet34": (1, None),
    "resnet50": (1, None),
}
"""Model → the smallest and the largest side of its input in pixels."""
NODES = {"IFNode": "if", "LIFNode": "lif", "PLIFNode": "plif", "ReLUNode": "relu"}


@dataclass(frozen=True)
class Slope:
    """A surrogate: its name here, its steepness, whether a node with it fires at u > θ only, and whether PLIFNode learns alpha."""

    name: str
    alpha: float = 2.0
    strict: bool = True
    learned: bool = False


SLOPES = {
    "Atan": Slope("atan", learned=True),
    "QGate": Slope("qgate"),
    "Gate": Slope("gate"),
    "Sigmoid": Slope("sigmoid", strict=False),
    "ReLU": Slope("relu", strict=False, learned=True),
    "STDP": Slope("relu", alpha=1.0),
    "BackEIGate": Slope("rectangle", alpha=1.0),
}


def _why(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


_FOLDER = "train on its folder of images with: spiketrain train RECIPE --data FOLDER --image-size 224"
REFUSED_NAMES = {
    "--dataset": {
        **_why(_FOLDER, "TinyImageNet CUB2002011 StanfordCars StanfordDogs FGVCAircraft Flowers102"),
        **_why("the older script took its channels for its time steps, and it is not here yet", "esimnet"),
        **_why("it is sound, not images: there is no reader of it here", "shd ntidigits"),
        **_why("it did not load in the older script, and there is no reader of it here", "bullyingdvs"),
        **_why("there is no reader of it here yet", "UCF101DVS"),
        **_why("its training part contained test samples, and there is no reader of it here", "HMDBDVS"),
        **_why("no network of the older script took it, and there is no reader of it here", "nomni"),
    },
    "--model": {
        **_why("it is not here: resnet50 is the largest ResNet", "resnet101 resnet152"),
        **_why("it is not here: take the ResNet of full width", "resnet34_half resnet50_half"),
        **_why(
            "grouped and wide ResNets are not here: take resnet50",
            "resnext50_32x4d resnext101_32x8d wide_resnet50_2 wide_resnet101_2",
        ),
        **_why("it is not here yet", "resnet19 VGG_SNN"),
        **_why("it is not here: take cifar_convnet or dvs_convnet", "SNN5 SNN7_tiny"),
        **_why("it is for sound, which is not here", "SHD_SNN"),
        **_why("it does not spike, and it fetched trained weights", "resnet50d_pretrained"),
        **_why(
            "the older script did not register it, and it is not here",
            "NetworkCIFAR NetworkImageNet CIFARNet_Wu CIFARNet_Fang DVS_CIFARNet_Fang",
        ),
        **_why(
            "no SEW model could be built by the older script, and none is here yet",
            "sew_resnet18 sew_resnet19 sew_resnet20 sew_resnet32 sew_resnet34 sew_resnet44 sew_resnet50 sew_resnet56 sew_resnet101 "
            "sew_resnet152 sew_resnext34_32x4d sew_resnext50_32x4d sew_resnext101_32x8d sew_wide_resnet50_2 sew_wide_resnet101_2",
        ),
    },
    "--node-type": {
        **_why("it crashed in the older script (generate_matrix was not defined)", "PSU IPSU RPSU SPSN"),
        **_why("it crashed in the older script with every network, and it is not here", "BackEINode OnlineLIFNode DoubleSidePLIFNode"),
        **_why("a model of brain simulation in millivolts, which diverges at these thresholds", "IzhNode IzhNodeMU SimHHNode"),
        **_why("a model of brain simulation, which the older script could not use either", "CTIzhNode adth HHNode aEIF ThreeCompNode"),
        **_why("its output is analog: it is no spiking neuron", "DGLIFNode HTDGLIFNode LIAFNode"),
        **_why("its spikes have up to six levels, and neurons here have two", "BurstLIFNode"),
        **_why("neurons with noise are not here", "NoiseLIFNode NoisePLIFNode"),
        **_why("neurons with a constant input current are not here", "BiasLIFNode BiasPLIFNode BiasReLUNode"),
        **_why("it multiplied its potential by tau at every step, which diverges for any tau above 1", "LIFSTDPNode"),
        **_why("a neuron that mixes its inputs over time is not here", "AdaptiveNode"),
    },
    "--act-fun": {
        **_why("its output is no spike: 0 to 5", "Round RoundGrad"),
        **_why("its output is no spike: −1, 0 or 1", "EI EIGrad"),
    },
}


def choose(flag: str, name: object, known: Iterable[str]) -> str:
    """The name where it is known; else a `UserError` that says why it is refused, or what is near to it."""
    known, reasons = tuple(known), REFUSED_NAMES[flag]
    if isinstance(name, str) and name in known:
        return name
    if isinstance(name, str) and name in reasons:
        raise UserError(f"{flag} {name} is refused: {reasons[name]}")
    raise unknown(flag, name, known)


def slope(name: str) -> Slope:
    """The surrogate of `--act-fun`, whose name has one Grad behind it, two, or none."""
    bare = name
    while bare.endswith("Grad"):
        bare = bare.removesuffix("Grad")
    return SLOPES[bare] if bare in SLOPES else SLOPES[choose("--act-fun", name, SLOPES)]
