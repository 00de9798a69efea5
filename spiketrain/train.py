"""`train(recipe) -> Record`: the only place where data, network, objective and recipe meet. Read it from top to bottom."""

import contextlib
import copy
import datetime
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from spiketrain import checkpoint, faults, folders, graphs, models, processes, record
from spiketrain.assemble import (
    build_network,
    choose_device,
    load_data,
    make_loader,
    make_optimizer,
    network_classes,
    slow_neurons,
    uses_bf16,
)
from spiketrain.checkpoint import Every
from spiketrain.data.image_augment import scaled
from spiketrain.data.loader import Loader, seed_everything
from spiketrain.data.types import DataSet
from spiketrain.errors import UserError
from spiketrain.evaluate import Evaluation, evaluate
from spiketrain.models import Network
from spiketrain.objective import Objective, correct, difficulty
from spiketrain.progress import Display, Meter
from spiketrain.recipes import Recipe
from spiketrain.record import Record
from spiketrain.signals import Signals, Stopped
from spiketrain.state import State


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
    checkpoint_every: str = "1",
    skip_bad_steps: bool = False,
    graph: bool = False,
    quiet: bool = False,
) -> Record:
    """Trains a network by a recipe and returns the record of it, which lies in a new folder under `output`.

    data_root: where data sets lie (default: environment SPIKETRAIN_DATA, else `data`); device: "auto", "cpu", "cuda" or
    "cuda:1"; resume: a run's folder, which is then continued to the same numbers as if it had never stopped; into: the
    run's own folder instead of a new one, continued if it has been begun, done if it has the record; download: fetch data that
    are absent; tensorboard: folder for its logs; checkpoint_every: so many epochs, or a time such as "5m"; skip_bad_steps: leave out
    a step whose loss is not finite, where the run would else stop; graph: replay the network's passes as CUDA graphs
    (`graphs.Replayed`). Raises `UserError` where something that the user named is wrong, before anything is trained, and `Stopped` when
    a signal has stopped it.

    Under torchrun, all processes train one network: batches are of all of them together, and process 0 alone writes.
    """
    every, source = Every.parse(checkpoint_every), record.commit()  # what is running, whatever is edited meanwhile
    with processes.join(choose_device(device)) as where:
        if graph:
            graphs.check(where, processes.world(), recipe.accumulate)
        ways = [Path(p) if p else None for p in (resume, into)]
        place = processes.first_does(lambda: folders.find(recipe, Path(output), *ways))
        if place.record:
            return place.record
        data = _load(recipe, data_root, download)
        loader = make_loader(recipe, data, where)
        bf16, classes = uses_bf16(recipe.precision, where), network_classes(recipe, data)
        seed_everything(recipe.seed)
        network = build_network(recipe, data, where)
        optimizer, scheduler = make_optimizer(recipe, network, loader.batches)
        state = State(recipe, network, optimizer, scheduler, loader.sampler, ModelEmaV3(network, decay=recipe.ema) if recipe.ema else None)
        if place.checkpoint:
            state.restore(place.checkpoint)
        folder = place.folder or processes.first_does(lambda: folders.new(Path(output), recipe))
        autocast = torch.autocast(where.type, torch.bfloat16, enabled=bf16)
        objective = Objective(recipe.loss, recipe.smoothing, recipe.tet_lambda, recipe.tet_phi, recipe.distil, recipe.distil_tau)
        logs = _tensorboard(tensorboard, folder)

        quiet = quiet or not processes.leads()
        done = state.epoch * loader.batches + state.batch
        with Display(recipe.epochs, loader.batches, done, quiet, processes.world()) as display, _resumable(folder, display):
            display.say(_headline(recipe, data, network, where, bf16))
            if slow := slow_neurons(network, where, bf16):
                display.say(slow)
            warm = warm_up(recipe, loader, network, autocast, objective, classes)
            display.say(f"warm-up and compilation: {warm:.1f} s (not counted as training)")
            if not place.checkpoint:
                state.save(folder)
            spread = graphs.Replayed(network, bf16) if graph else processes.spread(network, where)
            result = None
            with Signals(patient=processes.launched()) as signals:
                while state.epoch < recipe.epochs:
                    train_epoch(state, loader, spread, autocast, objective, folder, every, signals, display, skip_bad_steps)
                    begun = time.perf_counter()
                    seed_everything(recipe.seed, state.epoch, loader.batches, processes.rank())
                    network.steps = recipe.steps
                    result = evaluate(state.tested, loader.test(), autocast, classes, lambda: signals.stop != 0)
                    if any(processes.any_of(signals.stop != 0)):
                        _stop(state, folder, signals)
                    _end_epoch(state, result, time.perf_counter() - begun, display)
                    if state.epoch % every.epochs == 0 or state.epoch == recipe.epochs:
                        state.save(folder)
                        every.done()
                    _log(logs, state.epoch, state.curve[-1])
            if result is None:  # resumed after its last epoch, before its record
                seed_everything(recipe.seed, state.epoch - 1, loader.batches, processes.rank())
                result = evaluate(state.tested, loader.test(), autocast, classes)
        return processes.first_does(lambda: _record(state, data, result, warm, where, bf16, command, source, folder))


def train_epoch(
    state: State,
    loader: Loader,
    spread: nn.Module,
    autocast: torch.autocast,
    objective: Objective,
    folder: Path,
    every: Every,
    signals: Signals,
    display: Display,
    skip_bad_steps: bool,
) -> None:
    """The batches of an epoch that are still to be trained on; writes a checkpoint when one is due, and one when told to stop."""
    recipe, epoch, network = state.recipe, state.epoch, state.network
    network.train()
    network.steps = recipe.steps_in(epoch)
    begun, before = time.perf_counter(), state.spent
    mix = not recipe.mix_off_epoch or epoch < recipe.mix_off_epoch
    for inputs, labels in loader.train(epoch, mix, state.batch):
        inputs = scaled(inputs, recipe.side_in(epoch))
        kept = [b.clone() for b in network.buffers()] if skip_bad_steps else []
        bad, stop, due = train_step(
            recipe, spread, state.optimizer, autocast, objective, inputs, labels, state.meter, loader.size(state.batch),
            (signals.stop != 0, processes.rank() == 0 and every.due()), skip_bad_steps, loader.note if recipe.hardest < 1 else None,
        )  # fmt: skip
        state.batch += 1
        state.spent = before + time.perf_counter() - begun
        if bad and not skip_bad_steps:
            layer = faults.first_not_finite(network, inputs, autocast)
            where = f"epoch {epoch + 1}, step {state.batch}: first in {layer}"
            hint = "lower --lr, set --clip-grad, or leave such steps out with --skip-bad-steps"
            kept_one = f"the last good checkpoint is kept: --resume {folder}"
            raise UserError(f"the network or its loss became infinite or NaN in {where}; {hint} ({kept_one})")
        if bad:
            state.skipped += 1
            for buffer, value in zip(network.buffers(), kept, strict=True):
                buffer.copy_(value)
        if recipe.schedule_by == "step":
            state.scheduler.step_update(epoch * loader.batches + state.batch)
        if state.ema and not bad:
            state.ema.update(network)
        display.step(epoch, state.batch - 1, state.meter, state.spent)
        if stop:
            _stop(state, folder, signals)
        if due:
            state.save(folder)
            every.done()
    state.meter.sums()  # waits for the device
    state.spent = before + time.perf_counter() - begun


def train_step(
    recipe: Recipe,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    autocast: torch.autocast,
    objective: Objective,
    inputs: Tensor,
    labels: Tensor,
    meter: Meter,
    whole: int = 0,
    asked: tuple[bool, ...] = (),
    careful: bool = False,
    note: Callable[[Tensor], None] | None = None,
) -> tuple[bool, ...]:
    """One update of the weights from a batch, in `accumulate` parts that together give the gradient of the whole batch's loss.

    inputs, labels: this process's rows of a batch of `whole` samples (0: it has them all). Where the loss or a norm's statistics are
    not finite in any process, there is no update; nor where a gradient is not, which a GPU, that would have to wait for the answer,
    asks only if `careful`. `note` is told the loss of each sample of an update. Returns whether there was no update, and for each
    question `asked` whether any process says yes.
    """
    total = whole or len(labels)
    sizes = [part.stop - part.start for part in processes.rows(total, recipe.accumulate)]
    losses, right, each = [], [], []
    for i, (x, y) in enumerate(zip(inputs.split(sizes, 1 if inputs.dim() == 5 else 0), labels.split(sizes), strict=True)):
        with processes.alone(network, i + 1 == len(sizes)):
            with autocast:
                logits = network(x)
            loss = objective(logits, y)
            losses.append(loss.detach())
            right.append(correct(logits, y))
            if note:
                each.append(difficulty(logits, y))
            checks = [faults.Finite([*losses, *faults.statistics(network)])] if i + 1 == len(sizes) else []
            (loss * (len(y) * processes.world() / total)).backward()
    if careful or inputs.device.type == "cpu":
        checks.append(faults.Finite(p.grad for p in network.parameters() if p.grad is not None))
    answers = processes.any_of(not all(checks), *asked)
    if not answers[0]:
        for loss, hits, size in zip(losses, right, sizes, strict=True):
            meter.add(loss, hits, size)
        if note:
            note(torch.cat(each))
        if recipe.clip_grad:
            dispatch_clip_grad(network.parameters(), recipe.clip_grad, mode="norm")
        if recipe.grad_noise:
            for p in network.parameters():
                if p.grad is not None:
                    p.grad += recipe.grad_noise * processes.of_first(torch.randn_like(p.grad))
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return answers


def warm_up(recipe: Recipe, loader: Loader, network: Network, autocast: torch.autocast, objective: Objective, classes: int) -> float:
    """Seconds of one forward and backward pass, in training and evaluation, on a copy of the network: compiles what is to be compiled."""
    begun = time.perf_counter()
    twin = copy.deepcopy(network).train()
    inputs, labels = next(iter(loader.train(0)))
    inputs = scaled(inputs, recipe.side_in(0))
    train_step(recipe, twin, torch.optim.SGD(twin.parameters(), lr=0.0), autocast, objective, inputs, labels, Meter(), loader.size(0))
    evaluate(twin, itertools.islice(loader.test(), 1), autocast, classes)
    return time.perf_counter() - begun


@contextlib.contextmanager
def _resumable(folder: Path, display: Display) -> Iterator[None]:
    try:
        yield
    except Stopped:
        raise
    except KeyboardInterrupt:
        display.say(f"stopped; the last checkpoint is kept. Go on with: spiketrain train --resume {folder}")
        raise


def _stop(state: State, folder: Path, signals: Signals) -> None:
    """Writes a checkpoint and raises `Stopped`."""
    state.save(folder)
    number = max(processes.gather(signals.stop))
    how = f"go on with: {'torchrun … -m ' if processes.launched() else ''}spiketrain train --resume {folder}"
    raise Stopped(number, f"stopped in epoch {state.epoch + 1} after step {state.batch}; {how}")


def _load(recipe: Recipe, data_root: str | Path | None, download: bool) -> DataSet:
    """The data; where they may have to be fetched, process 0 is the first to look."""
    if download:
        processes.first_does(lambda: load_data(recipe, data_root, True).name)
    return load_data(recipe, data_root, download)


def _end_epoch(state: State, result: Evaluation, seconds: float, display: Display) -> None:
    """Adds an epoch to the curve, moves the schedule on, and says what came out."""
    sums = [sum(column) for column in zip(*processes.gather(state.meter.sums()), strict=True)]
    if not sums[2]:
        raise UserError(f"every step of epoch {state.epoch + 1} was skipped: its loss was infinite or NaN; lower --lr or set --clip-grad")
    entry = {
        "train_loss": sums[0] / sums[2],
        "train_accuracy": 100 * sums[1] / sums[2],
        "test_loss": result.loss,
        "test_accuracy": result.accuracy,
        "lr": state.optimizer.param_groups[0]["lr"],
        "seconds": state.spent,
        "samples_per_second": sums[2] / state.spent,
    }
    state.curve.append(entry | ({"skipped_steps": state.skipped} if state.skipped else {}))
    state.seconds = {"train": state.seconds["train"] + state.spent, "eval": state.seconds["eval"] + seconds}
    state.scheduler.step(state.epoch + 1, result.accuracy)
    display.epoch(state.epoch, state.curve[-1])
    for layer in faults.silent(result.rates):
        tries = f"a lower --threshold (it is {state.recipe.threshold:g}), a lower --lr, another --surrogate"
        display.say(f"warning: no neuron of layer {layer} fired in the evaluation after epoch {state.epoch + 1}; try {tries}")
    state.next_epoch()


def _headline(recipe: Recipe, data: DataSet, network: Network, device: torch.device, bf16: bool) -> str:
    several = f", {processes.world()} processes" if processes.world() > 1 else ""
    numbers = f"{models.count_parameters(network):,} parameters, T={recipe.steps}"
    return (
        f"{recipe.name}: {recipe.model}, {recipe.neuron}, {recipe.surrogate}, {numbers}; {data.name} "
        f"({len(data.train):,} + {len(data.test):,}); {device}, {'bf16' if bf16 else 'fp32'}{several}"
    )


def _tensorboard(folder: str | Path | None, run: Path) -> Any:
    if folder is None or not processes.leads():
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
    state: State, data: DataSet, result: Evaluation, warm: float, device: torch.device, bf16: bool, command: str | None,
    source: str, folder: Path,
) -> Record:
    """Writes weights and record into the run's folder."""
    recipe, network = state.recipe, state.tested
    digest = checkpoint.save_weights(folder / checkpoint.WEIGHTS, network.state_dict())
    several = {"processes": processes.world()} if processes.world() > 1 else {}
    made = Record(
        test_accuracy=result.accuracy,
        best_epoch_accuracy=max(e["test_accuracy"] for e in state.curve),
        train_seconds=round(state.seconds["train"], 3),
        compile_seconds=round(warm, 3),
        eval_seconds=round(state.seconds["eval"], 3),
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
        machine=record.machine(device) | several,
        versions=record.versions(),
        commit=source,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        precision="bf16" if bf16 else "fp32",
        parameters=models.count_parameters(network),
        macs_per_step=models.count_macs(network, data.sample_shape),
        curve=state.curve,
        firing_rates=result.rates,
        accuracy_by_step=result.by_step,
        confusion=result.confusion,
        weights=digest,
    )
    return made.save(folder)
