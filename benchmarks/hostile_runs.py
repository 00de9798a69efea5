"""What `hostile.py` changes of runs: checkpoints, weights, records, analyses, recipes, rows, configurations; and what reads them."""

import dataclasses
import io
import json
import math
import pickle
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from hostile_common import VALUES, Case, Payload, changed, json_bytes, outside, scattered

from spiketrain import checkpoint, cli_bench, models, page, recipes, report, tables
from spiketrain.assemble import make_optimizer, network_from
from spiketrain.errors import UserError, one_line
from spiketrain.files import read_json
from spiketrain.recipes import Recipe
from spiketrain.record import Record, machine
from spiketrain.verify import verify

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "img_cls" / "bp"))
import main as old

RECIPE = recipes.get("digits").but(width=0.25, epochs=2)


def _network() -> models.Network:
    torch.manual_seed(0)
    return network_from(RECIPE, 1, 10)


def _state() -> tuple[models.Network, torch.optim.Optimizer, Any, checkpoint.Checkpoint]:
    """A small network after a step, with what a checkpoint of it holds."""
    network = _network()
    optimizer, scheduler = make_optimizer(RECIPE, network, 10)
    network(torch.rand(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    curve = [{"train_loss": 1.0, "test_accuracy": 50.0}]
    state = checkpoint.Checkpoint(
        1, RECIPE.to_dict(), network.state_dict(), optimizer.state_dict(), scheduler.state_dict(), {}, curve, {"train": 1.0, "eval": 1.0}
    )
    return network, optimizer, scheduler, state


TENSORS: tuple[Callable[[], Any], ...] = (
    lambda: torch.zeros(1).expand(1 << 33), lambda: torch.zeros(3, dtype=torch.int8), lambda: torch.zeros(0), lambda: torch.full((4,),
    math.nan),
    lambda: torch.zeros(2, 2, dtype=torch.complex64), lambda: {"state": {}, "param_groups": []}, lambda: torch.Size([1, 2]),
)  # fmt: skip


def _bomb(archive: bytes) -> bytes:
    """The same archive with a compressed member that unpacks to 512 MB."""
    stream = io.BytesIO(archive)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as found:
        found.writestr(found.infolist()[0].filename.split("/")[0] + "/data/99", bytes(1 << 29), compresslevel=1)
    return stream.getvalue()


def checkpoints(folder: Path) -> Case:
    """state.pt (a zip of a pickle and tensors, read with weights_only) and weights.safetensors, resumed from as training does."""
    network, optimizer, scheduler, state = _state()
    checkpoint.save(folder, state)
    place = folder / "checkpoint-00001"
    whole = {f.name: f.read_bytes() for f in place.iterdir()}
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state) if f.name != "weights"} | {
        "recipe": json.dumps(state.recipe)
    }
    evil = pickle.dumps({"epoch": Payload(outside(folder))})
    bomb = _bomb(whole["state.pt"])
    values = (*VALUES, *TENSORS)

    def case(rng: random.Random) -> None:
        state_file, weights = place / "state.pt", place / checkpoint.WEIGHTS
        state_file.write_bytes(whole["state.pt"])
        weights.write_bytes(whole[checkpoint.WEIGHTS])
        kind = rng.randrange(12)
        if kind < 5:
            found = fields
            for _ in range(rng.choice((1, 1, 3))):
                found = changed(found, rng, values)
            torch.save(_made(found), state_file)
        elif kind < 9:
            state_file.write_bytes(scattered(whole["state.pt"], rng))
        elif kind == 9:
            weights.write_bytes(scattered(whole[checkpoint.WEIGHTS], rng))
        elif kind == 10:
            state_file.write_bytes(rng.choice((evil, _repacked(whole["state.pt"], evil), b"", b"PK")))
        elif rng.random() < 0.05:
            state_file.write_bytes(bomb)
        loaded = checkpoint.load(place)
        recipe = Recipe.from_dict(loaded.recipe)
        if recipe.to_dict() != RECIPE.to_dict():
            raise UserError(f"{place}: of another recipe")
        checkpoint.restore(network, loaded, place)
        checkpoint.resume(optimizer, scheduler, None, loaded, place)

    return case


def _made(value: Any) -> Any:
    """Tensors in place of their makers."""
    if callable(value):
        return value()
    if isinstance(value, dict):
        return {k: _made(v) for k, v in value.items()}
    return [_made(v) for v in value] if isinstance(value, list) else value


def _repacked(archive: bytes, pickled: bytes) -> bytes:
    """The archive with another pickle in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old_, zipfile.ZipFile(stream, "w") as new:
        for member in old_.infolist():
            new.writestr(member.filename, pickled if member.filename.endswith("data.pkl") else old_.read(member))
    return stream.getvalue()


def weights(folder: Path) -> Case:
    """weights.safetensors: its JSON header, its length, its bytes."""
    network = _network()
    file = folder / "weights.safetensors"
    checkpoint.save_weights(file, network.state_dict())
    whole = file.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def case(rng: random.Random) -> None:
        kind = rng.randrange(4)
        if kind < 2:
            data = json_bytes(header, rng)
            claimed = len(data) if rng.random() < 0.8 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(data) + 5))
            file.write_bytes(struct.pack("<Q", claimed) + data + body[: rng.choice((len(body), len(body), 10, 0))])
        else:
            file.write_bytes(scattered(whole, rng))
        checkpoint.load_weights(network, file)

    return case


def a_record() -> dict[str, Any]:
    """The fields of a whole record."""
    epoch = {
        "train_loss": 1.0,
        "train_accuracy": 50.0,
        "test_loss": 1.0,
        "test_accuracy": 50.0,
        "lr": 0.1,
        "seconds": 1.0,
        "samples_per_second": 9.0,
    }
    record = Record(
        test_accuracy=50.0, best_epoch_accuracy=50.0, train_seconds=2.0, compile_seconds=0.1, eval_seconds=0.1, seed=0,
        command="spiketrain train digits --seed 0", recipe=RECIPE.to_dict(),
        data={"name": "digits", "split": "index-mod-5", "train": 1438, "test": 4, "classes": 2, "train_fingerprint": "a",
        "test_fingerprint": "b"},
        machine=machine(torch.device("cpu")), versions={"torch": "2"}, commit="0" * 40, date="2026-01-01", precision="fp32", parameters=10,
        macs_per_step=10, curve=[epoch, epoch], firing_rates={"0": 0.1}, accuracy_by_step=[40.0, 50.0], confusion=[[1, 1], [1, 1]],
        weights="w",
    )  # fmt: skip
    return {k: v for k, v in dataclasses.asdict(record).items() if k != "path"}


def records(folder: Path) -> Case:
    """record.json, for the table, the page, the curves, and verify (which goes on to the weights, here absent)."""
    whole, file = a_record(), folder / "record.json"

    def case(rng: random.Random) -> None:
        file.write_bytes(json_bytes(whole, rng))
        record = Record.load(folder)
        text = tables.of([record])
        assert len(text.splitlines()) == 3, "a record broke the table's lines"
        report.write_curves([record], folder / "curves.csv")
        if rng.random() < 0.02:
            text = page.page([record])
            assert text.count("</script>") == 3 or "</script" not in json.dumps(whole)
        Recipe.from_dict(record.recipe)
        try:
            list(verify(folder))
        except UserError as error:
            assert one_line(error) == str(error), "verify refused it in more than a line"

    return case


def analyses(folder: Path) -> Case:
    """analysis.json beside a record, for the page."""
    (folder / "record.json").write_text(json.dumps(a_record()))
    record = Record.load(folder)
    whole = {
        "weights": "w", "layers": [{"name": "0", "neurons": 4, "rate_by_step": [0.1], "rate": 0.1, "silent": 0.0, "saturated": 0.0,
        "potentials": []}],
        "operations": {"layers": [], "totals": {}}, "caveat": "c", "accuracy_by_steps": [1.0], "robustness": [], "steps": 4,
    }  # fmt: skip

    def case(rng: random.Random) -> None:
        (folder / "analysis.json").write_bytes(json_bytes(whole, rng))
        json.dumps(page._run(record), allow_nan=False)

    return case


def recipe_files(folder: Path) -> Case:
    """A recipe's fields as JSON, as checkpoints and records have them, up to the network's sizes."""
    file, whole = folder / "recipe.json", RECIPE.to_dict()

    def case(rng: random.Random) -> None:
        file.write_bytes(json_bytes(whole, rng))
        values = read_json(file, "recipe")
        if not isinstance(values, dict):
            raise UserError(f"{file}: not a recipe")
        recipe = Recipe.from_dict(values)
        network_from(recipe.but(width=min(recipe.width, 0.25), steps=min(recipe.steps, 4)), 1, 10)

    return case


WORDS = (
    "digits", "mnist", "seed/cifar10-lif-qgate-cifar_convnet", "--epochs", "3", "--model", "evil.py:build", "resnet18", "--neuron",
    "plif", "--help", "-h", "-1",
    "--seed", "99999999999999999999999", "nan", "inf", "--lr", "1e999", "#", "--resume", "--output", "/", "..", "--data", "--no-flip",
    "--flip",
    "--area", "0.1,1", ",", "--tau", "\x00", "=", "--epochs=", "--", "'", '"', "--event-augment", "é", "\u2028", "--crop", "--into",
)  # fmt: skip


def rows(folder: Path) -> Case:
    """A file of rows for bench, and a model's file beside it that makes a folder when it is run."""
    file = folder / "rows.txt"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(outside(folder))!r})\n")
    words = [w.replace("evil.py", str(folder / "evil.py")) for w in WORDS]

    def case(rng: random.Random) -> None:
        lines = [" ".join(rng.choice(words) for _ in range(rng.randrange(6))) for _ in range(rng.randrange(1, 4))]
        lines += ["digits --epochs 2"] if rng.random() < 0.5 else []
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
        file.write_bytes(scattered(data, rng) if rng.random() < 0.3 else data)
        cli_bench.read_rows(file)

    return case


def configs(folder: Path) -> Case:
    """The older script's YAML."""
    file = folder / "config.yaml"
    whole = {"model": "resnet18", "dataset": "cifar10", "step": 4, "lr": 0.001, "clip_grad": None, "scale": [0.1, 1.0], "amp": True}
    lines = (
        f"lr: !!python/object/apply:os.mkdir ['{outside(folder)}']",
        "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nlr: [*b,*b,*b]",
        "lr: &z [*z]", "lr: 2001-99-99", "lr: 2001-02-30 10:10:10", "step: 0x" + "f" * 3000, "step: 1_0", "? [a, b]\n: 1", "lr: .nan",
        "lr: .inf",
        "lr: " + "[" * 1000, "{" * 1000, "lr: !!binary aaa", "lr: !!set {a}", "---\n---\n", "%YAML 9.9\n---\n", "<<: 1", "<<: *x",
        "step: 1:1:1", "lr: !!int x", "\x00",
    )  # fmt: skip
    bomb = "a0: &a0 [x,x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1},*a{i - 1},*a{i - 1},*a{i - 1}]\n" for i in range(1, 30)) + "lr: *a29\n"

    def case(rng: random.Random) -> None:
        kind = rng.randrange(4)
        if kind == 0:
            data = rng.choice((*lines, bomb, "lr: [*a,*a]")).encode()
        else:
            found: Any = {rng.choice(("drop", "epochs", "mixup", "threshold")): rng.choice(VALUES), **whole}
            for _ in range(rng.choice((1, 2))):
                found = changed(found, rng)
            data = yaml.safe_dump(found, allow_unicode=True).encode("utf-8", "surrogatepass")
        file.write_bytes(scattered(data, rng) if rng.random() < 0.3 else data)
        old.to_recipe(*old.parse(["-c", str(file)]))

    return case
