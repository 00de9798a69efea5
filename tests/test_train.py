"""Training end to end: the record, resuming, exactness, and every mistake a user can make on the command line."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import spiketrain as st
from spiketrain import checkpoint
from spiketrain.cli import main
from spiketrain.errors import UserError
from spiketrain.objective import Objective
from spiketrain.progress import Meter
from spiketrain.train import train_step

TINY = {"epochs": 2, "limit": 256, "width": 0.25, "batch_size": 32}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return st.train(st.recipes.get("digits").but(**TINY), output=tmp_path_factory.mktemp("runs"), device="cpu", quiet=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "weights.safetensors"))


def equal(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def only_run(output: Path) -> Path:
    (folder,) = output.iterdir()
    return folder


def test_a_run_leaves_a_whole_record(run):
    saved = json.loads(Path(run.path).read_text())
    assert saved["test_accuracy"] == run.curve[-1]["test_accuracy"] == run.accuracy_by_step[-1]
    assert saved["recipe"] == st.recipes.get("digits").but(**TINY).to_dict()
    assert np.trace(run.confusion) == round(run.test_accuracy / 100 * 359)
    assert np.sum(run.confusion) == saved["data"]["test"] == 359
    assert len(run.firing_rates) == 3 and all(0 <= rate < 1 for rate in run.firing_rates.values()) and run.firing_rates["0"] > 0
    assert saved["train_seconds"] > 0 and saved["machine"]["threads"] >= 1 and saved["versions"]["torch"]
    assert st.Record.load(run.folder) == run


def test_the_digits_recipe_learns(tmp_path):
    record = st.train(st.recipes.get("digits").but(epochs=8), output=tmp_path, device="cpu", quiet=True)
    assert record.test_accuracy >= 95
    assert record.curve[-1]["train_loss"] < 0.5 * record.curve[0]["train_loss"]


def test_same_seed_same_bits_other_seed_other_bits(run, tmp_path):
    again, other = (st.train(st.recipes.get("digits").but(**TINY, seed=s), output=tmp_path, device="cpu", quiet=True) for s in (0, 1))
    assert equal(run.folder, again.folder) and again.weights == run.weights
    assert not equal(run.folder, other.folder)


EVERYTHING = {
    "epochs": 3, "limit": 256, "width": 0.25, "batch_size": 32, "optimizer": "nadamw", "ema": 0.9, "mixup": 0.3, "cutmix": 0.5,
    "erase": 0.3, "randaugment": "rand-m5-n1-mstd0.5", "flip": True, "accumulate": 2, "schedule_by": "epoch", "neuron": "plif",
    "learn_alpha": True, "loss": "tet", "tet_lambda": 0.05, "encoder": "rate",
}  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "channels_last": True}], ids=["nadamw", "fused"])
def test_resuming_equals_never_having_stopped(changes, tmp_path, monkeypatch):
    recipe = st.recipes.get("digits").but(**EVERYTHING | changes)
    whole = st.train(recipe, output=tmp_path / "whole", device="cpu", quiet=True)

    seen = 0

    def stop_in_the_second_epoch(*arguments):
        nonlocal seen
        seen += 1
        if seen == 13:
            raise KeyboardInterrupt
        return train_step(*arguments)

    monkeypatch.setattr(sys.modules["spiketrain.train"], "train_step", stop_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        st.train(recipe, output=tmp_path / "parts", device="cpu", quiet=True)
    monkeypatch.undo()
    folder = only_run(tmp_path / "parts")
    resumed = st.train(recipe, resume=folder, device="cpu", quiet=True)
    assert equal(whole.folder, folder)
    assert [e["test_accuracy"] for e in resumed.curve] == [e["test_accuracy"] for e in whole.curve]


def start(output: Path, *flags: str) -> subprocess.Popen[str]:
    recipe = ["digits", "--epochs", "4", "--width", "0.25", "--device", "cpu", "--output", str(output)]
    return subprocess.Popen(
        [sys.executable, "-m", "spiketrain", "train", *recipe, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(output: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    for _ in range(2400):
        if list(output.glob(pattern)):
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError(f"no {pattern}")


def test_killed_in_the_middle_of_an_epoch_and_resumed(tmp_path):
    whole = start(tmp_path / "whole")
    killed = start(tmp_path / "killed")
    wait_for(tmp_path / "killed", "*/checkpoint-00001", killed)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert whole.wait() == 0
    folder = only_run(tmp_path / "killed")
    assert not (folder / "record.json").exists()
    assert main(["train", "--resume", str(folder), "--device", "cpu", "--quiet"]) == 0
    assert equal(folder, only_run(tmp_path / "whole"))


def test_a_checkpoint_from_before_a_field_was_there_goes_on(tmp_path):
    """Fields that recipes got later have their defaults, which change nothing."""
    recipe = st.recipes.get("digits").but(epochs=2, limit=64, width=0.25)
    record = st.train(recipe, into=tmp_path / "run", quiet=True, device="cpu")
    (file,) = record.folder.glob("checkpoint-*")
    found = checkpoint.load(file)
    del found.recipe["distil"]
    checkpoint.save(record.folder, found)
    (record.folder / "record.json").unlink()
    assert st.train(recipe, into=record.folder, quiet=True, device="cpu").curve == record.curve
    with pytest.raises(UserError, match="another recipe"):
        st.train(recipe.but(lr=0.5), into=record.folder, quiet=True, device="cpu")


def test_interrupted_it_ends_cleanly_and_says_how_to_go_on(tmp_path):
    process = start(tmp_path)
    wait_for(tmp_path, "*/checkpoint-00001", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert f"spiketrain train --resume {only_run(tmp_path)}" in errors.replace("\n", "")


def gradients(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    torch.manual_seed(0)
    network = st.models.build("digits_convnet", in_channels=1, width=0.25, kernel="reference").double().eval()
    inputs, labels = torch.randn(9, 1, 8, 8, dtype=torch.float64), torch.randint(0, 10, (9,))
    found = []
    for parts in (1, 4):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
        kept = {}
        optimizer.register_step_pre_hook(lambda *_, kept=kept: kept.update(gradients(network)))
        off = torch.autocast("cpu", torch.bfloat16, enabled=False)
        train_step(st.Recipe(accumulate=parts), network, optimizer, off, Objective(), inputs, labels, Meter())
        found.append(kept)
    assert found[0].keys() == found[1].keys() and len(found[0]) > 5
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-7)


def test_evaluation_from_the_command_line_agrees_with_the_record(run, capsys):
    assert main(["eval", run.path, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"test accuracy  {run.test_accuracy:.2f} %" in printed and "first  4 of 4 steps" in printed


def test_train_prints_accuracy_rate_picture_and_the_record_last(tmp_path, capsys):
    assert main(["train", "digits", "--epochs", "1", "--limit", "64", "--output", str(tmp_path), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == str(only_run(tmp_path) / "record.json") and Path(lines[-1]).is_file()
    assert re.match(r"test accuracy +[\d.]+ %", lines[-4]) and lines[-3].startswith("firing rate")
    picture = Path(lines[-2].split()[-1])
    assert Image.open(picture).size[0] > 600


@pytest.mark.parametrize("what", ["recipes", "models", "neurons", "surrogates", "data"])
def test_lists(what, capsys):
    assert main(["list", what]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 4


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    missing = [f for f in st.recipes.FIELDS if f != "name" and "--" + f.replace("_", "-") not in text]
    assert not missing


def refused(capsys, *arguments: str) -> str:
    """The one line that a wrong command ends in."""
    assert main([*arguments]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("spiketrain: ")]
    assert len(lines) == 1 and printed.err.splitlines()[-1] == lines[0] and "Traceback" not in printed.err
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["digitz"], "did you mean 'digits'"),
        (["digits", "--model", "resnet81"], "did you mean 'resnet18'"),
        (["digits", "--neuron", "lef"], "did you mean 'lif'"),
        (["digits", "--surrogate", "attan"], "did you mean 'atan'"),
        (["digits", "--data", "cifar01"], "did you mean 'cifar10'"),
        (["digits", "--epoch", "3"], "did you mean '--epochs'"),
        (["digits", "--optimizer", "adamx"], "did you mean 'adam"),
        (["digits", "--epochs", "three"], "--epochs"),
        (["digits", "--epochs", "0"], "epochs must be at least 1"),
        (["digits", "--loss", "tte"], "did you mean 'tet'"),
        (["digits", "--randaugment", "strong"], "rand-m9"),
        (["digits", "--tau", "nan"], "tau"),
        (["digits", "--classes", "5"], "label 9"),
        (["digits", "--device", "tpu"], "device"),
        (["digits", "--surrogate", "qgate", "--learn-alpha"], "no gradient by alpha"),
        ([], "which recipe"),
    ],
)
def test_wrong_flags_are_one_line(flags, said, capsys, tmp_path):
    assert said in refused(capsys, "train", *flags, *(["--output", str(tmp_path), "--device", "cpu"] if "--device" not in flags else []))
    assert not list(tmp_path.iterdir())


def test_unknown_commands_and_lists_are_one_line(capsys):
    assert "train" in refused(capsys, "tran")
    assert "did you mean 'models'" in refused(capsys, "list", "model")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion", "dvsc10", "dvsg", "NCALTECH101", "nmnist", "ncars"])
def test_absent_data_are_one_line_that_says_what_to_put_where(name, capsys, tmp_path):
    line = refused(capsys, "train", "digits", "--data", name, "--data-root", str(tmp_path), "--output", str(tmp_path / "runs"))
    assert str(tmp_path) in line and name in line


def image_folder(base: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (base / name).mkdir(parents=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(base / name / f"{i}.png")
    return base


def test_a_folder_of_images_trains_and_its_faults_are_named(capsys, tmp_path):
    base = image_folder(tmp_path / "pets")
    flags = ["train", "digits", "--data", str(base), "--epochs", "1", "--output", str(tmp_path / "runs"), "--device", "cpu"]
    assert main(flags) == 0
    capsys.readouterr()
    broken = base / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:-200])
    assert str(broken) in refused(capsys, *flags)
    broken.unlink()
    (base / "emu").mkdir()
    assert str(base / "emu") in refused(capsys, *flags)


def test_checkpoints_of_another_model_and_damaged_ones_are_one_line(capsys, tmp_path):
    assert main(["train", "digits", "--epochs", "2", "--limit", "64", "--output", str(tmp_path), "--device", "cpu", "--quiet"]) == 0
    capsys.readouterr()
    folder = only_run(tmp_path)
    assert "width was 1.0" in refused(capsys, "train", "--resume", str(folder), "--width", "0.5")
    path = checkpoint.latest(folder)
    good = {f: (path / f).read_bytes() for f in ("state.pt", "weights.safetensors")}
    for name, content in good.items():
        for damaged in (b"", content[: len(content) // 2], b"\x80\x04junk" * 50, content[:9] + os.urandom(64) + content[73:]):
            (path / name).write_bytes(damaged)
            line = refused(capsys, "train", "--resume", str(folder))
            assert name in line
        (path / name).write_bytes(content)
    narrow = st.models.build("digits_convnet", in_channels=1, width=0.5)
    checkpoint.save_weights(path / "weights.safetensors", narrow.state_dict())
    assert "another model" in refused(capsys, "train", "--resume", str(folder))
    assert "no checkpoint" in refused(capsys, "train", "--resume", str(tmp_path / "nothing"))


def test_wrong_records_are_one_line(run, capsys, tmp_path):
    assert "no record" in refused(capsys, "eval", str(tmp_path / "absent"))
    (tmp_path / "record.json").write_text("{]")
    assert "not a record" in refused(capsys, "eval", str(tmp_path / "record.json"))
    (tmp_path / "record.json").write_text("{}")
    assert "not a record" in refused(capsys, "eval", str(tmp_path / "record.json"))
    data = run.data | {"test_fingerprint": "0" * 64}
    dataclasses.replace(run, data=data).save(tmp_path)
    assert "other data" in refused(capsys, "eval", str(tmp_path))


def test_a_place_that_cannot_be_written_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "choose another --output" in refused(capsys, "train", "digits", "--output", str(tmp_path / "file"), "--device", "cpu")


def test_a_loss_that_is_not_finite_stops_the_run(capsys, tmp_path):
    flags = ["--lr", "1e30", "--clip-grad", "0", "--warmup-epochs", "0", "--optimizer", "sgd", "--epochs", "3"]
    assert "loss became" in refused(capsys, "train", "digits", *flags, "--output", str(tmp_path), "--device", "cpu")


def test_the_public_surface_of_the_readme():
    lif = st.neurons.LIF(tau=2.0, threshold=1.0, surrogate="atan", alpha=2.0, reset="hard", detach=True)
    x = torch.randn(4, 2, 3)
    spikes = lif(x)
    state, stepped = None, []
    for x_t in x:
        s, state = lif.step(x_t, state)
        stepped.append(s)
    assert torch.equal(spikes, torch.stack(stepped))
    net = st.models.build("resnet18", neuron="lif", surrogate="atan", in_channels=3, num_classes=10, steps=4, width=0.25)
    assert net(torch.randn(2, 3, 32, 32)).shape == (4, 2, 10)
    assert net(torch.randn(6, 2, 3, 32, 32)).shape == (6, 2, 10)
