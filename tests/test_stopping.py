"""Stopping inside an epoch and going on to the same bits; losses that are not finite; silent layers."""

import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import spiketrain as st
from spiketrain import checkpoint
from spiketrain.checkpoint import Every
from spiketrain.cli import main
from spiketrain.errors import UserError
from spiketrain.faults import first_not_finite, silent
from spiketrain.signals import Stopped

ENGINE = sys.modules["spiketrain.train"]
EVERYTHING = {
    "epochs": 3, "limit": 256, "width": 0.25, "batch_size": 32, "optimizer": "nadamw", "ema": 0.9, "mixup": 0.3, "cutmix": 0.5,
    "erase": 0.3, "randaugment": "rand-m5-n1-mstd0.5", "flip": True, "accumulate": 2, "neuron": "plif", "grad_noise": 0.01,
    "learn_alpha": True, "loss": "tet", "tet_lambda": 0.05, "encoder": "rate",
    "curriculum": "1,2,4", "division": "open", "flip_by": "turn", "train_sides": "6,8",
}  # fmt: skip


def bits(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(str(Path(folder) / "weights.safetensors"))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def numbers(record: st.Record) -> list[tuple[float, ...]]:
    return [tuple(e[k] for k in ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "lr")) for e in record.curve]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return st.train(st.recipes.get("digits").but(**EVERYTHING), output=tmp_path_factory.mktemp("whole"), device="cpu", quiet=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(("at", "name"), [(13, "checkpoint-00001-00000005"), (16, "checkpoint-00001-00000008")])
def test_told_to_stop_it_finishes_the_step_and_goes_on_to_the_same_bits(whole, number, status, at, name, tmp_path, monkeypatch):
    """Inside an epoch, and before its evaluation; the epoch's meter goes on too, so its loss is the same to the bit."""
    recipe, seen, real = st.recipes.get("digits").but(**EVERYTHING), [], ENGINE.train_step

    def step(*arguments):
        answer = real(*arguments)
        seen.append(1)
        if len(seen) == at == 13:
            signal.raise_signal(number)
        return answer

    evaluations, evaluate = [], ENGINE.evaluate

    def evaluation(*arguments):
        evaluations.append(1)
        if len(evaluations) == 3 and at == 16:  # one in the warm-up, one after the first epoch
            signal.raise_signal(number)
        return evaluate(*arguments)

    monkeypatch.setattr(ENGINE, "evaluate", evaluation)
    monkeypatch.setattr(ENGINE, "train_step", step)
    with pytest.raises(Stopped, match="go on with: spiketrain train --resume") as stop:
        st.train(recipe, into=tmp_path / "run", device="cpu", quiet=True)
    monkeypatch.undo()
    assert stop.value.status == status
    assert checkpoint.latest(tmp_path / "run").name == name
    resumed = st.train(recipe, into=tmp_path / "run", device="cpu", quiet=True)
    assert same(bits(resumed.folder), bits(whole.folder))
    assert numbers(resumed) == numbers(whole)
    assert resumed.firing_rates == whole.firing_rates


def test_checkpoints_by_time_are_inside_epochs_and_lose_nothing(whole, tmp_path, monkeypatch):
    recipe, names, real = st.recipes.get("digits").but(**EVERYTHING), [], checkpoint.save

    def killed(folder, state):
        real(folder, state)
        names.append(state.name)
        if state.name == "checkpoint-00002-00000003":
            raise RuntimeError("killed")

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(RuntimeError, match="killed"):
        st.train(recipe, into=tmp_path, device="cpu", quiet=True, checkpoint_every="0.00001s")
    monkeypatch.undo()
    assert names[0] == "checkpoint-00000" and names[1] == "checkpoint-00000-00000001" and len(names) == 1 + 9 + 9 + 3
    assert [p.name for p in sorted(tmp_path.glob("checkpoint-*"))] == ["checkpoint-00002-00000003"]
    resumed = st.train(recipe, into=tmp_path, device="cpu", quiet=True)
    assert same(bits(tmp_path), bits(whole.folder)) and numbers(resumed) == numbers(whole)


def test_checkpoints_every_few_epochs(tmp_path, monkeypatch):
    names, real = [], checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda folder, state: (real(folder, state), names.append(state.name)))
    recipe = st.recipes.get("digits").but(epochs=5, limit=32, batch_size=32, width=0.25)
    st.train(recipe, output=tmp_path, device="cpu", quiet=True, checkpoint_every="2")
    assert names == ["checkpoint-00000", "checkpoint-00002", "checkpoint-00004", "checkpoint-00005"]


def test_how_often_is_read_and_refused():
    assert Every.parse("3").epochs == 3 and math.isinf(Every.parse("3").seconds)
    assert [Every.parse(t).seconds for t in ("90s", "5m", "1.5h")] == [90, 300, 5400]
    for wrong in ("0", "-1", "1.5", "5 m", "m", "5d", ""):
        with pytest.raises(UserError, match="--checkpoint-every"):
            Every.parse(wrong)


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    recipe = st.recipes.get("digits").but(epochs=1, limit=32, batch_size=32, width=0.25)
    (tmp_path / ".checkpoint-00001.abc.part").mkdir()
    (tmp_path / ".checkpoint-00001.abc.part" / "state.pt").write_bytes(b"half")
    (tmp_path / ".record.json.12.part").write_bytes(b"half")
    st.train(recipe, into=tmp_path, device="cpu", quiet=True)
    assert not list(tmp_path.glob(".*"))


def test_a_kill_while_an_older_checkpoint_is_removed_leaves_whole_ones(tmp_path, monkeypatch):
    """Removal is cut short after a file, and nothing after it runs, as by kill -9."""

    class Killed(BaseException): ...

    def cut_short(folder, **_):
        next(Path(folder).glob("*.safetensors")).unlink()
        raise Killed

    recipe = st.recipes.get("digits").but(epochs=2, limit=32, batch_size=32, width=0.25)
    monkeypatch.setattr("spiketrain.checkpoint.shutil.rmtree", cut_short)
    with pytest.raises(Killed):
        st.train(recipe, into=tmp_path, device="cpu", quiet=True)
    monkeypatch.undo()
    for left in tmp_path.glob("checkpoint-*"):
        checkpoint.load(left)
    assert checkpoint.latest(tmp_path).name == "checkpoint-00001"
    st.train(recipe, into=tmp_path, device="cpu", quiet=True)
    assert not list(tmp_path.glob(".*"))


def poison(step: int, monkeypatch) -> None:
    """The labels' loss of one step becomes infinite: its inputs do."""
    from spiketrain.data.loader import Loader

    real, seen = Loader.train, []

    def train(self, *arguments, **options):
        for inputs, labels in real(self, *arguments, **options):
            seen.append(1)
            if len(seen) == step + 1:  # the warm-up takes the first batch
                inputs = inputs * float("inf")
            yield inputs, labels

    monkeypatch.setattr(Loader, "train", train)


def test_an_infinite_loss_names_layer_and_step_and_keeps_the_checkpoint(tmp_path, monkeypatch, capsys):
    flags = ["digits", "--limit", "128", "--batch-size", "32", "--width", "0.25", "--epochs", "3", "--device", "cpu"]
    poison(7, monkeypatch)
    assert main(["train", *flags, "--into", str(tmp_path)]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("spiketrain: ")]
    assert "epoch 2, step 3: first in the input" in line and str(tmp_path) in line
    assert checkpoint.latest(tmp_path).name == "checkpoint-00001"
    assert not checkpoint.load(checkpoint.latest(tmp_path)).weights["body.0.conv.weight"].isnan().any()


def test_the_first_layer_that_is_not_finite_is_named():
    network = st.models.build("resnet9", in_channels=3, width=0.125, kernel="reference")
    off = torch.autocast("cpu", torch.bfloat16, enabled=False)
    x = torch.randn(2, 3, 16, 16)
    assert first_not_finite(network, x, off) == "the loss or its gradient"
    convolutions = [n for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d)]
    for name in (convolutions[2], convolutions[0]):
        with torch.no_grad():
            network.get_submodule(name).weight[0, 0, 0, 0] = float("nan")
        assert first_not_finite(network, x, off) == f"layer {name.removeprefix('body.')}"


def test_bad_steps_are_skipped_and_counted(tmp_path, monkeypatch, capsys):
    recipe = st.recipes.get("digits").but(limit=128, batch_size=32, width=0.25, epochs=2)
    poison(3, monkeypatch)
    record = st.train(recipe, output=tmp_path, device="cpu", quiet=True, skip_bad_steps=True)
    assert [e.get("skipped_steps", 0) for e in record.curve] == [1, 0]
    assert all(math.isfinite(e["train_loss"]) and math.isfinite(e["test_loss"]) for e in record.curve)
    assert all(t.isfinite().all() for t in bits(record.folder).values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    real, seen = torch.optim.Optimizer.zero_grad, []
    recipe = st.recipes.get("digits").but(limit=32, batch_size=32, width=0.25, epochs=3, optimizer="sgd")

    def broken(self, *arguments, **options):
        seen.append(1)
        if len(seen) == 3:  # the warm-up, then the first epoch's step, then the second's
            self.param_groups[0]["params"][0].data.fill_(float("inf"))
        return real(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", broken)
    with pytest.raises(UserError, match="infinite or NaN in epoch 2"):
        st.train(recipe, into=tmp_path, device="cpu", quiet=True)
    assert checkpoint.latest(tmp_path).name == "checkpoint-00001"


def test_a_silent_layer_is_a_warning_that_names_it(tmp_path, capsys):
    assert silent({"0": 0.0, "1": 0.2}) == ["0"]
    flags = ["--limit", "32", "--batch-size", "32", "--width", "0.25", "--epochs", "1", "--device", "cpu", "--threshold", "1000"]
    assert main(["train", "digits", *flags, "--output", str(tmp_path)]) == 0
    printed = " ".join(capsys.readouterr().err.split())
    assert "no neuron of layer 0 fired in the evaluation after epoch 1; try a lower --threshold (it is 1000)" in printed


def test_sigterm_from_outside_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "spiketrain", "train", "digits", "--epochs", "99", "--width", "0.25", "--device", "cpu", "--into"]
    process = subprocess.Popen([*command, str(tmp_path / "run")], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for _ in range(600):
        if list(tmp_path.glob("run/checkpoint-00001*")):
            break
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in errors
    assert f"go on with: spiketrain train --resume {tmp_path / 'run'}" in errors.splitlines()[-1]
    assert not list(tmp_path.glob("run/.*"))
