"""A good record is accepted; what was altered is refused, and said."""

import hashlib
import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from spiketrain.cli import main
from spiketrain.record import Record

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify") / "run"
    assert main(["train", "digits", "--epochs", "3", "--width", "0.5", "--into", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run whose record names a commit, as a clean checkout's does."""
    folder = shutil.copytree(trained, tmp_path / "run")
    edit(folder, commit=COMMIT)
    return folder


def edit(folder, **changes):
    file = folder / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refused(folder, capsys):
    assert main(["verify", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and str(folder) in err
    return err


def test_a_good_record_is_accepted(run, capsys):
    assert main(["verify", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.strip().endswith("accepted") and "tested again" in out


def test_altered_weights_are_refused(run, capsys):
    weights = load_file(run / "weights.safetensors")
    name = next(k for k in weights if k.endswith("conv.weight"))
    weights[name] *= 1.01
    save_file(weights, run / "weights.safetensors")
    assert "not the file it was made with" in refused(run, capsys)


def test_altered_weights_with_their_own_digest_are_refused_by_what_they_do(run, capsys):
    weights = load_file(run / "weights.safetensors")
    for name in weights:
        if name.endswith("fc.weight"):
            weights[name] = -weights[name]
    save_file(weights, run / "weights.safetensors")
    edit(run, weights=hashlib.sha256((run / "weights.safetensors").read_bytes()).hexdigest())
    assert "when the weights are tested again" in refused(run, capsys)


def test_an_edited_accuracy_is_refused(run, capsys):
    edit(run, test_accuracy=99.9)
    assert "not that of the last epoch" in refused(run, capsys)


def test_an_accuracy_edited_everywhere_is_refused(run, capsys):
    record = Record.load(run)
    test = record.data["test"]
    classes = len(record.confusion)
    confusion = [[0] * classes for _ in range(classes)]
    confusion[0][0] = test
    curve = [*record.curve[:-1], record.curve[-1] | {"test_accuracy": 100.0}]
    edit(run, test_accuracy=100.0, best_epoch_accuracy=100.0, curve=curve, confusion=confusion)
    assert "when the weights are tested again" in refused(run, capsys)


def test_other_data_are_refused(run, capsys):
    edit(run, data=Record.load(run).data | {"test_fingerprint": "0" * 64})
    assert "is of other data" in refused(run, capsys)


def test_another_split_is_refused(run, capsys):
    edit(run, data=Record.load(run).data | {"split": "the easy ones"})
    assert "split of the data" in refused(run, capsys)


@pytest.mark.parametrize("commit", ["", COMMIT + "+changes", "main"])
def test_a_record_of_no_commit_or_of_edited_source_is_refused(commit, run, capsys):
    edit(run, commit=commit)
    assert "commit" in refused(run, capsys)


@pytest.mark.parametrize("field", ["parameters", "macs_per_step"])
def test_edited_counts_are_refused(field, run, capsys):
    edit(run, **{field: 7})
    assert f"{field} is 7 there" in refused(run, capsys)


def test_edited_firing_rates_are_refused(run, capsys):
    edit(run, firing_rates={k: v / 3 for k, v in Record.load(run).firing_rates.items()})
    assert "firing rate of layer" in refused(run, capsys)


def test_a_record_without_its_weights_is_refused(run, capsys):
    (run / "weights.safetensors").unlink()
    assert "weights beside the record" in refused(run, capsys)
