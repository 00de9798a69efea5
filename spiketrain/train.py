"""`train(recipe) -> Record`: the only place where data, network, objective and recipe meet. Read it from top to bottom."""

import contextlib
import copy
import datetime
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor

from spiketrain import checkpoint, models, record
from spiketrain.assemble import build_network, choose_device, load_data, make_loader, make_optimizer, network_classes, uses_bf16
from spiketrain.checkpoint import Checkpoint
from spiketrain.data.loader import Loader, seed_everything
from spiketrain.data.types import DataSet
from spiketrain.errors import UserError
from spiketrain.evaluate import Evaluation, evaluate
from spiketrain.models import Network
from spiketrain.objective import Objective, correct
from spiketrain.progress import Display, Meter
from spiketrain.recipes import Recipe
from spiketrain.record import Record


def train(
    recipe: Recipe,
    *,
    data_root: str | Path | None = None,
    output: str | Path = "runs",
    device: str = "auto",
    resume: str | Path | None = None,
    into: str | Path | None = None,
    download: bool = False,
    command: str | None = None,
    tensorboard: str | Path | None = None,
    quiet: bool = False,
) -> Record:
    """Trains a network by a recipe and returns the record of it, which lies in a new folder under `output`.

    data_root: where data sets lie (default: environment SPIKETRAIN_DATA, else `data`); device: "auto", "cpu", "cuda" or
    "cuda:1"; resume: a run's folder, which is then continued to the same numbers as if it had never stopped; into: the
    run's own folder instead of a new one, continued if it has been begun, done if it has the record; download: fetch data that
    are absent; tensorboard: folder for its logs. Raises `UserError` where something that the user
    named is wrong, before anything is trained.
    """
    if isinstance(done := _begun(into, recipe), Record):
        return done
    resume = resume or done
    where = choose_device(device)
    bf16 = uses_bf16(recipe.precision, where)
    data = load_data(recipe, data_root, download)
    loader = make_loader(recipe, data, where)
    seed_everything(recipe.seed)
    network = build_network(recipe, data, where)
    optimizer, scheduler = make_optimizer(recipe, network, loader.batches)
    ema = ModelEmaV3(network, decay=recipe.ema) if recipe.ema else None
    curve: list[dict[str, float]] = []
    start, seconds = 0, {"train": 0.0, "eval": 0.0}
    if resume:
        folder, start, curve, seconds = _restore(Path(resume), recipe, network, optimizer, scheduler, ema)
    else:
        folder = Path(into) if into else new_folder(Path(output), recipe)
    autocast = torch.autocast(where.type, torch.bfloat16, enabled=bf16)
    objective = Objective(recipe.loss, recipe.smoothing, recipe.tet_lambda, recipe.tet_phi)
    tested: Network = ema.module if ema else network
    logs = _tensorboard(tensorboard, folder)

    with Display(recipe.epochs, loader.batches, start, quiet) as display, _resumable(folder, display):
        display.say(_headline(recipe, data, network, where, bf16))
        warm = warm_up(recipe, loader, network, autocast, objective, network_classes(recipe, data))
        display.say(f"warm-up and compilation: {warm:.1f} s (not counted as training)")
        if not resume:
            _save(folder, recipe, 0, network, optimizer, scheduler, ema, curve, seconds)
        for epoch in range(start, recipe.epochs):
            network.train()
            meter, begun = Meter(), time.perf_counter()
            mix = not recipe.mix_off_epoch or epoch < recipe.mix_off_epoch
            for batch, (inputs, labels) in enumerate(loader.train(epoch, mix)):
                train_step(recipe, network, optimizer, autocast, objective, inputs, labels, meter)
                if recipe.schedule_by == "step":
                    scheduler.step_update(epoch * loader.batches + batch + 1)
                if ema:
                    ema.update(network)
                display.step(epoch, batch, meter, time.perf_counter() - begun)
            (loss, accuracy), spent = meter.read(), time.perf_counter() - begun
            if not math.isfinite(loss):
                raise UserError(f"the loss became {loss} in epoch {epoch + 1}: lower --lr or set --clip-grad ({folder} is kept)")
            begun = time.perf_counter()
            result = evaluate(tested, loader.test(), autocast, network_classes(recipe, data))
            seconds = {"train": seconds["train"] + spent, "eval": seconds["eval"] + time.perf_counter() - begun}
            curve.append(_entry(optimizer, loss, accuracy, result, spent, meter.samples))
            scheduler.step(epoch + 1, result.accuracy)
            display.epoch(epoch, curve[-1])
            _save(folder, recipe, epoch + 1, network, optimizer, scheduler, ema, curve, seconds)
            _log(logs, epoch + 1, curve[-1])
        if start == recipe.epochs:  # resumed after its last epoch, before its record
            result = evaluate(tested, loader.test(), autocast, network_classes(recipe, data))
    digest = checkpoint.save_weights(folder / checkpoint.WEIGHTS, tested.state_dict())
    return _record(recipe, data, tested, result, curve, seconds, warm, where, bf16, command, digest).save(folder)


def train_step(
    recipe: Recipe,
    network: Network,
    optimizer: torch.optim.Optimizer,
    autocast: torch.autocast,
    objective: Objective,
    inputs: Tensor,
    labels: Tensor,
    meter: Meter,
) -> None:
    """One update of the weights from a batch, in `accumulate` parts that together give the gradient of the whole batch's loss."""
    total = len(labels)
    batch_axis = 1 if inputs.dim() == 5 else 0
    size = -(-total // recipe.accumulate)
    for x, y in zip(inputs.split(size, batch_axis), labels.split(size), strict=True):
        with autocast:
            logits = network(x)
        loss = objective(logits, y)
        (loss * (len(y) / total)).backward()
        meter.add(loss, correct(logits, y), len(y))
    if recipe.clip_grad:
        dispatch_clip_grad(network.parameters(), recipe.clip_grad, mode="norm")
    if recipe.grad_noise:
        for p in network.parameters():
            if p.grad is not None:
                p.grad += recipe.grad_noise * torch.randn_like(p.grad)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def warm_up(recipe: Recipe, loader: Loader, network: Network, autocast: torch.autocast, objective: Objective, classes: int) -> float:
    """Seconds of one forward and backward pass, in training and evaluation, on a copy of the network: compiles what is to be compiled."""
    begun = time.perf_counter()
    twin = copy.deepcopy(network).train()
    inputs, labels = next(iter(loader.train(0)))
    train_step(recipe, twin, torch.optim.SGD(twin.parameters(), lr=0.0), autocast, objective, inputs, labels, Meter())
    evaluate(twin, [next(iter(loader.test()))], autocast, classes)
    return time.perf_counter() - begun


def _begun(into: str | Path | None, recipe: Recipe) -> Record | Path | None:
    """What a run's own folder, made if it is not there, holds of the run: its record, a checkpoint, or nothing yet."""
    if not into:
        return None
    folder = Path(into)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}): choose another --into") from error
    if (folder / record.FILE).exists():
        made = Record.load(folder)
        if made.recipe != recipe.to_dict():
            raise UserError(f"{made.path}: is of another recipe: choose another --into")
        return made
    return folder if checkpoint.has(folder) else None


def new_folder(output: Path, recipe: Recipe) -> Path:
    """A new folder for a run, named by recipe, seed and time."""
    name = f"{recipe.name.replace('/', '-')}-s{recipe.seed}-{datetime.datetime.now():%Y%m%d-%H%M%S}"
    for i in range(1000):
        folder = output / (f"{name}-{i}" if i else name)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            if output.exists() and not output.is_dir():
                break
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror}): choose another --output") from error
    raise UserError(f"{output}: is not a folder: choose another --output")


@contextlib.contextmanager
def _resumable(folder: Path, display: Display) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        display.say(f"stopped; the last whole epoch is kept. Go on with: spiketrain train --resume {folder}")
        raise


def _headline(recipe: Recipe, data: DataSet, network: Network, device: torch.device, bf16: bool) -> str:
    numbers = f"{models.count_parameters(network):,} parameters, T={recipe.steps}"
    return (
        f"{recipe.name}: {recipe.model}, {recipe.neuron}, {recipe.surrogate}, {numbers}; {data.name} "
        f"({len(data.train):,} + {len(data.test):,}); {device}, {'bf16' if bf16 else 'fp32'}"
    )


def _entry(
    optimizer: torch.optim.Optimizer, loss: float, accuracy: float, result: Evaluation, seconds: float, samples: int
) -> dict[str, float]:
    return {
        "train_loss": loss,
        "train_accuracy": accuracy,
        "test_loss": result.loss,
        "test_accuracy": result.accuracy,
        "lr": optimizer.param_groups[0]["lr"],
        "seconds": seconds,
        "samples_per_second": samples / seconds,
    }


def _save(
    folder: Path,
    recipe: Recipe,
    epoch: int,
    network: Network,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    ema: ModelEmaV3 | None,
    curve: list[dict[str, float]],
    seconds: dict[str, float],
) -> None:
    average = ema.module.state_dict() if ema else {}
    state = Checkpoint(
        epoch, recipe.to_dict(), network.state_dict(), optimizer.state_dict(), scheduler.state_dict(), average, curve, seconds
    )
    checkpoint.save(folder, state)


def _restore(
    run: Path, recipe: Recipe, network: Network, optimizer: torch.optim.Optimizer, scheduler: Any, ema: ModelEmaV3 | None
) -> tuple[Path, int, list[dict[str, float]], dict[str, float]]:
    path = checkpoint.latest(run)
    state = checkpoint.load(path)
    then, now = state.recipe, recipe.to_dict()
    changed = [k for k in now if then.get(k) != now[k]]
    if changed:
        raise UserError(f"{path}: was made by another recipe ({', '.join(f'{k} was {then.get(k)!r}' for k in changed[:4])})")
    checkpoint.restore(network, state, path)
    checkpoint.resume(optimizer, scheduler, ema.module if ema else None, state, path)
    return path.parent, state.epoch, state.curve, state.seconds


def _tensorboard(folder: str | Path | None, run: Path) -> Any:
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("--tensorboard needs the tensorboard package: pip install tensorboard") from None
    return SummaryWriter(str(Path(folder) / run.name))  # type: ignore[no-untyped-call]


def _log(logs: Any, epoch: int, entry: dict[str, float]) -> None:
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr"):
        if logs is not None:
            logs.add_scalar(name, entry[name], epoch)


def _record(
    recipe: Recipe,
    data: DataSet,
    network: Network,
    result: Evaluation,
    curve: list[dict[str, float]],
    seconds: dict[str, float],
    warm: float,
    device: torch.device,
    bf16: bool,
    command: str | None,
    digest: str,
) -> Record:
    return Record(
        test_accuracy=result.accuracy,
        best_epoch_accuracy=max(e["test_accuracy"] for e in curve),
        train_seconds=round(seconds["train"], 3),
        compile_seconds=round(warm, 3),
        eval_seconds=round(seconds["eval"], 3),
        seed=recipe.seed,
        command=command or record.command_line(),
        recipe=recipe.to_dict(),
        data={
            "name": data.name,
            "split": data.split_rule,
            "train": len(data.train),
            "test": len(data.test),
            "classes": len(data.classes),
            "train_fingerprint": data.train.fingerprint,
            "test_fingerprint": data.test.fingerprint,
        },
        machine=record.machine(device),
        versions=record.versions(),
        commit=record.commit(),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        precision="bf16" if bf16 else "fp32",
        parameters=models.count_parameters(network),
        macs_per_step=models.count_macs(network, data.sample_shape),
        curve=curve,
        firing_rates=result.rates,
        accuracy_by_step=result.by_step,
        confusion=result.confusion,
        weights=digest,
    )
