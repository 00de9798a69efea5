"""The 54 rows of the older benchmark as recipes: `seed/<data>-<neuron>-<surrogate>-<model>`.

They follow what its table was made with, not what its code became later: 600 epochs, weight decay 0.01, the seven-convolution
dvs_convnet and the ResNet with a pooled stem, statistics of batch norm per step, firing at u > θ, a detached hard reset,
ImageNet statistics for training and test images.
"""

import csv
import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

from spiketrain.recipes.recipe import Recipe

TABLE_MODELS = {"cifar_convnet": "cifar_convnet", "dvs_convnet": "dvs_convnet7", "resnet18": "resnet18_pooled"}
"""Name in the table → the network the table was made with."""


@dataclass(frozen=True)
class Row:
    """One row of the older table. `accuracy` is its best epoch on the test set; `accuracy_2` a second, unexplained figure."""

    data: str
    neuron: str
    surrogate: str
    model: str
    steps: int
    batch_size: int
    classes: int
    macs: float | None
    accuracy: float
    accuracy_2: float | None
    command: str

    @property
    def name(self) -> str:
        """Of its recipe."""
        return f"seed/{self.data}-{self.neuron}-{self.surrogate}-{self.model}"


@functools.cache
def rows() -> tuple[Row, ...]:
    """The table, in its order."""
    text = resources.files(__package__).joinpath("seed_rows.csv").read_text(encoding="utf-8")
    number = {"steps": int, "batch_size": int, "classes": int}
    found = []
    for line in csv.DictReader(text.splitlines()):
        values = {k: number[k](v) if k in number else v for k, v in line.items()}
        for k in ("macs", "accuracy", "accuracy_2"):
            values[k] = float(line[k]) if line[k] else None
        found.append(Row(**values))  # type: ignore[arg-type]
    return tuple(found)


def compatible(neuron: str, surrogate: str, batch_size: int, lr: float = 5e-3) -> Recipe:
    """What all of the older benchmark's runs share; `lr` is per 1024 samples."""
    return Recipe(
        neuron=neuron, surrogate=surrogate, alpha=2.0, threshold=0.5, tau=2.0, strict=True, norm="step",
        learn_alpha=neuron == "plif" and surrogate == "atan",
        batch_size=batch_size, lr=lr * batch_size / 1024, weight_decay=0.01, opt_eps=1e-8, schedule_by="epoch",
        warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5, epochs=600, precision="fp32", smoothing=0.1,
    )  # fmt: skip


def recipe(row: Row) -> Recipe:
    """The recipe of one row."""
    common = compatible(row.neuron, row.surrogate, row.batch_size).but(
        name=row.name, data=row.data, model=TABLE_MODELS[row.model], steps=row.steps
    )
    return common.but(**data_options(row.data, row.classes))


def data_options(data: str, classes: int) -> dict[str, object]:
    """What the older benchmark did to each data set."""
    if data in ("cifar10", "cifar100"):
        return {"crop": 4, "flip": True, "randaugment": "rand-m9-mstd0.5-inc1", "erase": 0.25, "normalize": "imagenet"}
    events: dict[str, object] = {"event_size": 48, "frame_resize": "bilinear"}
    if data == "dvsc10":
        events["event_augment"] = ("crop-flip-rotate",)
    if data == "dvsg":
        events["event_augment"] = ("crop",)
    if data == "NCALTECH101":
        events |= {"balanced": True, "split": "portion-0.9-objects" if classes == 100 else "portion-0.9"}
    return events


def recipes() -> dict[str, Callable[[], Recipe]]:
    """Name → a function that makes the recipe, for all 54 rows, and a 200-epoch form of each under `<name>-200`."""
    made: dict[str, Callable[[], Recipe]] = {}
    for row in rows():
        made[row.name] = functools.partial(recipe, row)
        made[row.name + "-200"] = functools.partial(_shorter, row)
    return made


def _shorter(row: Row) -> Recipe:
    return recipe(row).but(name=row.name + "-200", epochs=200)
