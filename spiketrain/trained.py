"""A trained network, opened from its record: what `eval`, `verify` and `analyze` have in common."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spiketrain import assemble, checkpoint, unroll
from spiketrain.data.loader import Loader
from spiketrain.data.types import DataSet
from spiketrain.errors import UserError
from spiketrain.evaluate import Evaluation, evaluate
from spiketrain.models import Network
from spiketrain.recipes import Recipe
from spiketrain.record import Record


@dataclass(frozen=True)
class Trained:
    """A record with its recipe, data and network (in evaluation mode, on `device`)."""

    record: Record
    recipe: Recipe
    data: DataSet
    network: Network
    loader: Loader
    device: torch.device

    def autocast(self) -> torch.autocast:
        """The precision that the record was made with."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.record.precision == "bf16")

    def test(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test part in batches."""
        return self.loader.test()

    def evaluate(self) -> Evaluation:
        """The network on the whole test part, as training does it."""
        return evaluate(self.network, self.test(), self.autocast(), assemble.network_classes(self.recipe, self.data))


def open_record(path: str | Path, data_root: str | Path | None = None, device: str = "auto") -> Trained:
    """The network of a record, with weights and data.

    path: a run's folder or its record.json, with weights.safetensors beside it. Raises `UserError` where the record, the weights or
    the data are absent, damaged, or do not fit each other. Nothing in them is executed.
    """
    record = Record.load(path)
    recipe = Recipe.from_dict(record.recipe)
    where = assemble.choose_device(device)
    data = assemble.load_data(recipe, data_root)
    for part, split in (("train", data.train), ("test", data.test)):
        then = str(record.data.get(f"{part}_fingerprint"))
        if split.fingerprint != then:
            prints = f"has the fingerprint {then[:12]}… there, {split.fingerprint[:12]}… here"
            raise UserError(f"{record.path}: is of other data: the {part} part {prints}")
    network = assemble.build_network(recipe, data, where)
    checkpoint.load_weights(network, record.folder / checkpoint.WEIGHTS)
    return Trained(record, recipe, data, network.eval(), assemble.make_loader(recipe, data, where), where)


def unrolled(trained: Trained) -> tuple[float, float]:
    """A network of ilif neurons as one of binary spikes: its accuracy, %, and the largest difference of a batch's logits in float64."""
    binary = dataclasses.replace(trained, network=unroll.unroll(trained.network))
    images, _ = next(trained.test())
    return binary.evaluate().accuracy, unroll.difference(trained.network, images)
