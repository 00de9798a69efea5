"""Can a record be trusted? Everything in it that can be computed again from its weights and data is, and compared."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from spiketrain import checkpoint, models
from spiketrain.errors import UserError
from spiketrain.record import Record
from spiketrain.trained import Trained, open_record

TOLERANCE = 0.1
"""Points of accuracy (and at least two samples) that another processor may make: roundings differ, so a few spikes do."""

RATE_TOLERANCE = 0.01


def verify(path: str | Path, data_root: str | Path | None = None, device: str = "auto") -> Iterator[str]:
    """Checks a record, and yields a line for each thing that holds; `UserError` at the first that does not.

    In this order: it names the commit of an unedited source; its numbers agree with each other; the weights are those it was made with;
    data, split and counts are; parameters and operations are counted again; the weights are tested again.
    """
    record = Record.load(path)
    yield _source(record)
    yield _consistent(record)
    yield _weights(record)
    trained = open_record(path, data_root, device)
    yield _data(trained)
    yield _counts(trained)
    yield _accuracy(trained)


def _refuse(record: Record, what: str) -> UserError:
    return UserError(f"{record.path}: refused: {what}")


def _source(record: Record) -> str:
    if not record.commit:
        raise _refuse(record, "it names no commit: train from a checkout of the source")
    if record.commit.endswith("+changes") or len(record.commit) != 40:
        raise _refuse(record, f"its source was edited, or its commit is none ({record.commit[:60]}): commit first, then train")
    return f"commit     {record.commit}"


def _consistent(record: Record) -> str:
    last = record.curve[-1] if record.curve else {}
    if len(record.curve) != record.recipe.get("epochs") or record.seed != record.recipe.get("seed"):
        raise _refuse(record, f"a curve of {len(record.curve)} epochs and seed {record.seed} do not fit its recipe")
    if record.test_accuracy != last.get("test_accuracy"):
        then = last.get("test_accuracy")
        raise _refuse(record, f"test_accuracy {record.test_accuracy} is not that of the last epoch of its curve, {then}")
    if record.best_epoch_accuracy != max(e["test_accuracy"] for e in record.curve):
        raise _refuse(record, f"best_epoch_accuracy {record.best_epoch_accuracy} is not the best of its curve")
    samples = sum(map(sum, record.confusion))
    right = sum(row[i] for i, row in enumerate(record.confusion))
    if samples != record.data.get("test") or round(100 * right / samples, 4) != record.test_accuracy:
        raise _refuse(record, f"its confusion matrix has {right} of {samples} right, which is not {record.test_accuracy} %")
    return f"curve      {len(record.curve)} epochs, the last {record.test_accuracy:.2f} %"


def _weights(record: Record) -> str:
    file = record.folder / checkpoint.WEIGHTS
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise _refuse(record, f"{file} cannot be read ({error.strerror}); a submission has its weights beside the record") from error
    if digest != record.weights:
        raise _refuse(record, f"{file.name} is not the file it was made with (SHA-256 {digest[:12]}…, not {record.weights[:12]}…)")
    return f"weights    SHA-256 {digest[:12]}…"


def _data(trained: Trained) -> str:
    data, then = trained.data, trained.record.data
    now = {"name": data.name, "split": data.split_rule, "train": len(data.train), "test": len(data.test), "classes": len(data.classes)}
    for key, value in now.items():
        if then.get(key) != value:
            raise _refuse(trained.record, f"{key} of the data is {then.get(key)!r} there and {value!r} here")
    return f"data       {data.name}, split {data.split_rule}, {len(data.train):,} + {len(data.test):,}, fingerprints equal"


def _counts(trained: Trained) -> str:
    record = trained.record
    now = {
        "parameters": models.count_parameters(trained.network),
        "macs_per_step": models.count_macs(trained.network, trained.data.sample_shape),
    }
    for key, value in now.items():
        if getattr(record, key) != value:
            raise _refuse(record, f"{key} is {getattr(record, key):,} there and {value:,} counted here")
    return f"counts     {record.parameters:,} parameters, {record.macs_per_step:,} multiply-accumulates a step"


def _accuracy(trained: Trained) -> str:
    record, result = trained.record, trained.evaluate()
    most = max(TOLERANCE, 200 / len(trained.data.test) + 1e-9)
    if abs(result.accuracy - record.test_accuracy) > most:
        raise _refuse(record, f"test_accuracy {record.test_accuracy:.2f} % is {result.accuracy:.2f} % when the weights are tested again")
    loss = record.curve[-1]["test_loss"]
    if abs(result.loss - loss) > 0.01 + 0.01 * abs(loss):
        raise _refuse(record, f"the last test_loss {loss:.4f} is {result.loss:.4f} when the weights are tested again")
    for name, rate in record.firing_rates.items():
        if name not in result.rates or abs(result.rates[name] - rate) > RATE_TOLERANCE:
            raise _refuse(record, f"firing rate of layer {name} is {rate} there and {result.rates.get(name)} when tested again")
    return f"accuracy   {result.accuracy:.2f} % when tested again, firing rates within {RATE_TOLERANCE}"
