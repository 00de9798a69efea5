"""Checkpoints that are whole or not there, and that open without running anything.

A checkpoint is a folder `checkpoint-00007` (seven epochs done), or `checkpoint-00007-00000012` (and twelve batches of the next),
with `weights.safetensors` and `state.pt` (optimiser, schedule, average of weights, curve, recipe, sums of the epoch so far), which
loads with `weights_only`. It is written under another name and renamed. The state of the random generators is not in it: they are
seeded before every batch, by its number.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from spiketrain.errors import UserError, one_line

WEIGHTS = "weights.safetensors"
NAME = r"checkpoint-\d{5,}(-\d{8,})?"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `epoch` whole epochs and `batch` batches of the next one.

    partial: of that next epoch, what it has come to: `meters` (the sums of each process), `spent` (seconds), `skipped` (steps).
    samples: what the sampler knows of each, where it chooses among them.
    """

    epoch: int
    recipe: dict[str, Any]
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any]
    ema: dict[str, Tensor]
    curve: list[dict[str, float]]
    seconds: dict[str, float]
    batch: int = 0
    partial: dict[str, Any] = dataclasses.field(default_factory=dict)
    samples: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"checkpoint-{self.epoch:05d}" + (f"-{self.batch:08d}" if self.batch else "")


@dataclass
class Every:
    """When checkpoints are due: after every so many epochs, or after a step when so many seconds have passed since the last one."""

    epochs: int = 1
    seconds: float = math.inf
    last: float = dataclasses.field(default_factory=time.monotonic)

    @staticmethod
    def parse(text: str) -> "Every":
        """`3` is every three epochs; `90s`, `5m`, `1h` is so much time, and every epoch."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
        if not found or float(found[1]) == 0 or (not found[2] and "." in found[1]):
            raise UserError(f"--checkpoint-every {text}: a number of epochs, or a time such as 90s, 5m, 1h, is expected")
        if not found[2]:
            return Every(int(found[1]))
        return Every(1, float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]])

    def due(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() - self.last >= self.seconds

    def done(self) -> None:
        """A checkpoint has been written: the time begins anew."""
        self.last = time.monotonic()


def save_weights(file: Path, weights: dict[str, Tensor]) -> str:
    """Writes a state dict as safetensors, whole or not at all; returns the SHA-256 of the file."""
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in weights.items()}, str(part))
        _to_disk(part)
        part.replace(file)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{file}: cannot be written ({error}): free some space or choose another --output") from error
    return hashlib.sha256(file.read_bytes()).hexdigest()


def load_weights(network: nn.Module, file: Path) -> None:
    """Weights from a safetensors file; `UserError` where it is absent, damaged, or of another model."""
    _into(network, _read_weights(file), file)


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint into a run's folder and removes the older ones. One of the same name is the same, and is left."""
    final = folder / checkpoint.name
    if final.exists():
        return
    part = folder / f".{final.name}.{uuid.uuid4().hex[:8]}.part"
    try:
        part.mkdir(parents=True)
        save_weights(part / WEIGHTS, checkpoint.weights)
        state = {f.name: getattr(checkpoint, f.name) for f in dataclasses.fields(Checkpoint) if f.name != "weights"}
        state["recipe"] = json.dumps(checkpoint.recipe)
        torch.save(state, part / "state.pt")
        _to_disk(part / "state.pt")
        part.rename(final)
        _to_disk(folder)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"{final}: cannot be written ({error}): free some space or choose another --output") from error
    for older in _all(folder)[:-1]:
        _remove(older)


def _remove(path: Path) -> None:
    """Under another name first: a process that is killed in between leaves nothing that looks like a checkpoint and is half of one."""
    part = path.with_name(f".{path.name}.old.part")
    with contextlib.suppress(OSError):
        path.rename(part)
        shutil.rmtree(part, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Removes what a process that was killed has left half-written in a run's folder."""
    for part in folder.glob(".*.part"):
        shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def has(folder: Path) -> bool:
    """Whether a run's folder holds a checkpoint."""
    return bool(_all(folder))


def latest(folder: Path) -> Path:
    """The newest checkpoint in a run's folder; `UserError` where there is none."""
    if re.fullmatch(NAME, folder.name) and folder.is_dir():
        return folder
    found = _all(folder)
    if not found:
        raise UserError(f"{folder}: no checkpoint there: give the folder of a run that has a checkpoint-… in it")
    return found[-1]


def load(path: Path) -> Checkpoint:
    """Reads one checkpoint folder; `UserError` where it is damaged. Nothing in it is executed."""
    state_file = path / "state.pt"
    try:
        with warnings.catch_warnings():  # of pickle protocols, when what is damaged looks like one
            warnings.simplefilter("ignore")
            _check_claims(state_file)
            state = torch.load(state_file, map_location="cpu", weights_only=True)
        state["recipe"] = json.loads(state["recipe"])
        _check_types(state)
        return Checkpoint(weights=_read_weights(path / WEIGHTS), **state)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged archive raises
        why = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{state_file}: damaged ({why}): remove {path.name} to resume from an older one") from error


def _check_claims(file: Path) -> None:
    """`ValueError` where a state claims more memory than its file has bytes: torch would take it before it looks.

    The archive's members are never compressed; tensors are first made on the meta device, which takes no memory.
    """
    size = file.stat().st_size
    with zipfile.ZipFile(file) as members:
        if any(m.compress_type != zipfile.ZIP_STORED or m.file_size > size for m in members.infolist()):
            raise ValueError("its archive claims more than the file has")
    seen: set[int] = set()
    claimed, todo = 0, [torch.load(file, map_location="meta", weights_only=True)]
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            claimed += value.numel() * value.element_size()
        elif isinstance(value, dict):
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            todo += value
    if claimed > size:
        raise ValueError("its tensors claim more than the file has")


def _check_types(state: dict[str, Any]) -> None:
    """`ValueError` where a state's fields are not what a checkpoint has."""
    kinds = {"epoch": int, "recipe": dict, "optimizer": dict, "scheduler": dict, "ema": dict, "curve": list, "seconds": dict}
    for name, kind in kinds.items():
        if not isinstance(state[name], kind) or isinstance(state[name], bool):
            raise ValueError(f"{name} is no {kind.__name__}")
    samples = state.get("samples", {})
    if not isinstance(samples, dict) or not all(isinstance(t, Tensor) and t.dtype is torch.float32 for t in samples.values()):
        raise ValueError("samples are no tensors of losses")
    numbers = [*state["seconds"].values(), *(v for entry in state["curve"] for v in entry.values())]
    good = 0 <= state["epoch"] <= 10**6 and {"train", "eval"} <= set(state["seconds"])
    if not good or not all(isinstance(n, int | float) for n in numbers):
        raise ValueError("epoch, curve and seconds are not those of a run")


def restore(network: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """The checkpoint's weights into a network; `UserError` where they are those of another."""
    _into(network, checkpoint.weights, path / WEIGHTS)


def resume(optimizer: torch.optim.Optimizer, scheduler: Any, average: nn.Module | None, state: Checkpoint, path: Path) -> None:
    """The checkpoint's state into optimiser, schedule and average of weights; `UserError` where it is that of others."""
    try:
        optimizer.load_state_dict(state.optimizer)
        _lie_as_weights(optimizer)
        scheduler.load_state_dict(state.scheduler)
        if average:
            average.load_state_dict(state.ema)
    except Exception as error:  # what torch and timm raise at the state of another is not listed
        raise UserError(f"{path}: its optimiser's state does not fit ({one_line(error)[:120]}): remove it to use an older one") from error


def _lie_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """A weight's state in the order of memory that the weight has: torch's fused optimisers go through both without a look at strides."""
    for weight, state in optimizer.state.items():
        for name, x in state.items():
            if isinstance(x, Tensor) and x.shape == weight.shape and x.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=x.dtype).copy_(x)


def _into(network: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    own = network.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        mine, theirs = (tuple(w[name].shape) if name in w else "absent" for w in (own, weights))
        if mine != theirs:
            raise UserError(f"{file}: weights of another model: {name} is {theirs} there and {mine} here")
    network.load_state_dict(weights)


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(str(file))
        return weights
    except FileNotFoundError:
        raise UserError(f"{file}: not there") from None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{file}: damaged, or not safetensors ({one_line(error)})") from error


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if re.fullmatch(NAME, p.name) and p.is_dir())


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
