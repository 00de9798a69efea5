"""Benchmarks that are killed and started again, rows that fail, plans, and rows from a file."""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spiketrain import bench, models
from spiketrain.bench import command, find_records, jobs, slug, table
from spiketrain.cli import main, recipe_of
from spiketrain.errors import UserError
from spiketrain.recipes import RECIPES, get
from spiketrain.record import Record
from spiketrain.report import analysis_of, load_records

ROOT = Path(__file__).resolve().parent.parent
SMALL = "digits --epochs 3 --limit 128 --width 0.25"
ROWS = "\n".join(f"{SMALL} --neuron {n}" for n in ("if", "lif", "plif"))


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text(f"# three rows\n{ROWS}\n")
    return file


def arguments(rows, tmp_path):
    return ["bench", str(rows), "--output", str(tmp_path / "runs"), "--results", str(tmp_path / "none")]


def wait_for(runs, pattern, but=None):
    """The folders that have such a file, once there are any."""
    deadline = time.monotonic() + 120
    while not (found := {f.parent for f in runs.glob(pattern)} - {but}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found
    return found


def processes_with(text):
    """Ids of the processes whose command line has this text."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text in file.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(file.parent.name))
    return found


def test_killed_twice_and_started_again_every_row_has_one_record(rows, tmp_path, capfd):
    words, runs = [sys.executable, "-m", "spiketrain", *arguments(rows, tmp_path)], tmp_path / "runs"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    begun = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    wait_for(runs, "*/checkpoint-*")
    begun.send_signal(signal.SIGKILL)  # its run goes on, and holds its lock
    begun.wait()
    [first] = [job for job in jobs([recipe_of(line.split()) for line in ROWS.splitlines()], runs, []) if job.folder.exists()]
    again = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    # Of another run: a run that replaces its checkpoint has two for a moment.
    [second] = wait_for(runs, "*/checkpoint-*", but=first.folder)
    assert (first.folder / "record.json").exists()  # the device was not given away before
    for process in processes_with(f"--into {second} "):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    assert again.wait(200) == 0
    records = find_records([runs])
    assert len(records) == len(list(runs.glob("*/record.json"))) == len(list(runs.iterdir())) == 3
    assert not list(runs.glob("*/error.json"))
    before = {f: f.stat().st_mtime_ns for f in runs.glob("*/record.json")}
    assert main(arguments(rows, tmp_path)) == 0
    assert {f: f.stat().st_mtime_ns for f in before} == before
    for record in records.values():
        assert len(record.curve) == 3 and record.command.startswith("spiketrain train digits --epochs 3")


def test_a_row_that_fails_is_kept_with_its_error_and_the_rest_goes_on(tmp_path, capfd):
    file, runs = tmp_path / "rows.txt", tmp_path / "runs"
    file.write_text("digits --epochs 1 --limit 64 --data nowhere\ndigits --epochs 1 --limit 64 --width 0.25\n")
    assert main([*arguments(file, tmp_path), "--analyze", "--promote", str(tmp_path / "results")]) == 1
    assert "unknown data set 'nowhere'" in capfd.readouterr().out.replace("\n", " ")
    chosen = [recipe_of(line.split()) for line in file.read_text().splitlines()]
    states = [job.state for job in jobs(chosen, runs, [], analyze=True)]
    assert states == ["failed", "done"]
    assert [job.state for job in jobs(chosen, runs, [], retry=True)] == ["waiting", "done"]
    [record] = load_records(tmp_path / "results")
    assert analysis_of(record)["weights"] == record.weights
    (tmp_path / "results" / "analysis" / Path(record.path).name).unlink()
    assert [job.state for job in jobs(chosen[1:], tmp_path / "none", [tmp_path / "results"], analyze=True)] == ["waiting"]
    assert [job.state for job in jobs(chosen[1:], tmp_path / "none", [tmp_path / "results"])] == ["done"]


def test_a_run_that_was_killed_is_no_failure_at_the_next_start(rows, tmp_path):
    recipe = recipe_of(ROWS.splitlines()[0].split())
    folder = tmp_path / slug(recipe)
    folder.mkdir()
    for status, state in ((-9, "waiting"), (130, "waiting"), (2, "failed"), (-11, "failed")):
        (folder / "error.json").write_text(json.dumps({"error": "said", "status": status}))
        assert [job.state for job in jobs([recipe], tmp_path, [])] == [state]


def test_a_run_of_another_benchmark_keeps_its_device(rows, tmp_path):
    todo = jobs([recipe_of(line.split()) for line in ROWS.splitlines()[:2]], tmp_path, [])
    todo[0].folder.mkdir()
    lock = (todo[0].folder / ".lock").open("w")
    lock.write("cpu")
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX)
    states = bench.run(todo, ["cpu"], [])
    for _ in range(3):
        assert [job.state for job in next(states)] == ["elsewhere", "waiting"]
    states.close()


def test_a_network_of_ones_own_takes_every_rows_place(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from spiketrain.models.convnet import pooling\ndef tiny(plan):\n    return pooling([(8, 1)], plan)\n")
    spec = f"{file}:tiny"
    assert main(["bench", "digits-grid", "--model", spec, "--neuron", "lif", "--seeds", "0", "--plan", "--results", str(tmp_path)]) == 0
    assert "4 runs" in capsys.readouterr().out
    models.MODELS.pop(spec)
    assert main(["bench", "digits-grid", "--model", f"{file}:none", "--plan"]) == 2
    assert "has no function none" in capsys.readouterr().err


def test_the_command_of_a_recipe_makes_that_recipe():
    for name in RECIPES:
        changed = get(name).but(seed=3, epochs=2, flip=True, learn_alpha=False, event_augment=("roll", "flip"), lr=0.125)
        assert recipe_of(command(changed)[1:]) == changed


def test_tables_filters_and_seeds():
    assert len(table("digits-grid", None, {}, {})) == 36 and len({slug(r) for r in table("digits-grid", None, {}, {})}) == 36
    assert len(table("seed", None, {}, {})) == 54
    some = table("seed-dvsg", [4, 5], {"epochs": 7}, {"neuron": ["LIF", "PLIF"], "model": ["resnet18"]})
    assert len(some) == 8 and {r.seed for r in some} == {4, 5} and {r.epochs for r in some} == {7}
    with pytest.raises(UserError, match="no row has neuron XLIF"):
        table("seed", None, {}, {"neuron": ["XLIF"]})
    with pytest.raises(UserError, match="digits-grid"):
        table("digit-grid", None, {}, {})


def test_a_plan_runs_nothing(rows, tmp_path, capsys):
    assert main([*arguments(rows, tmp_path), "--plan", "--seeds", "0,1"]) == 0
    out = capsys.readouterr().out
    assert "6 runs" in out and "PFLOP" in out and not (tmp_path / "runs").exists()


def test_operations_are_six_a_multiply_accumulate():
    recipe = get("digits").but(epochs=5)
    job = bench.operations(recipe)
    assert job == 6 * 903_808 * 4 * 1438 * 5  # multiply-accumulates a step as in the records, T=4


@pytest.mark.parametrize(("line", "said"), [("digits --epoch 2", "line 1"), ("", "no row in it"), ("digts", "digits")])
def test_a_wrong_row_names_file_and_line(line, said, tmp_path, capsys):
    file = tmp_path / "rows.txt"
    file.write_text(line + "\n")
    assert main(arguments(file, tmp_path)) == 2
    err = capsys.readouterr().err
    assert said in err and "rows.txt" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits-grid", "--seeds", "a,b"], "--seeds a,b"),
        (["digits-grid", "--seeds", "-1"], "seed"),
        (["digits-grid", "--epochs", "0"], "epochs"),
        (["digits-grid", "--minutes", "-1"], "--minutes"),
        (["digits-grid", "--neuron", "XLIF"], "no row has neuron XLIF"),
        (["digit-grid"], "digits-grid"),
        (["digits-grid", "--device", "tpu"], "tpu"),
        (["digits-grid", "--device", "cuda:77"], "cuda:77"),
        (["no/such/file.txt"], "no/such/file.txt"),
    ],
)
def test_wrong_input_is_one_line(words, said, tmp_path, capsys):
    assert main(["bench", *words, "--output", str(tmp_path), "--plan"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_model_file_is_run_only_when_it_is_named(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(re.search(r"```python\n(.*?)```", (ROOT / "docs/submit.md").read_text(), re.DOTALL)[1])
    spec, run = f"{file}:build", tmp_path / "run"
    assert main(["train", "digits", "--epochs", "1", "--limit", "64", "--into", str(run), "--quiet", "--model", spec]) == 0
    content = json.loads((run / "record.json").read_text()) | {"commit": "0123456789abcdef" * 2 + "01234567"}
    (run / "record.json").write_text(json.dumps(content))
    for command_name in ("eval", "verify"):
        models.MODELS.pop(spec)
        assert main([command_name, str(run), "--model", spec]) == 0
    assert "accepted" in capsys.readouterr().out
    models.MODELS.pop(spec)
    file.write_text(f"raise SystemExit('run')  # {Path(__file__).name}\n")
    for command_name in ("eval", "verify", "analyze"):
        assert main([command_name, str(run)]) == 2
        assert "name it again" in capsys.readouterr().err


def test_tensorboard_has_the_curve(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (the extra `tensorboard`)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["--epochs", "2", "--limit", "64", "--width", "0.25", "--into", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "logs")]
    assert main(["train", "digits", *words, "--quiet"]) == 0
    logs = EventAccumulator(str(tmp_path / "logs" / "run"))
    logs.Reload()
    curve = Record.load(tmp_path / "run").curve
    for name in ("train_loss", "test_accuracy", "lr"):
        assert [event.value for event in logs.Scalars(name)] == pytest.approx([entry[name] for entry in curve], rel=1e-5)
