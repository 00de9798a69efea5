"""Benchmarks that are killed and started again, rows that fail, plans, and rows from a file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spiketrain import bench
from spiketrain.bench import command, find_records, jobs, slug, table
from spiketrain.cli import main, recipe_of
from spiketrain.errors import UserError
from spiketrain.recipes import RECIPES, get

SMALL = "digits --epochs 3 --limit 128 --width 0.25"
ROWS = "\n".join(f"{SMALL} --neuron {n} --surrogate {s}" for n in ("if", "lif") for s in ("atan", "qgate"))


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text(f"# four rows\n{ROWS}\n")
    return file


def arguments(rows, tmp_path):
    return ["bench", str(rows), "--output", str(tmp_path / "runs"), "--results", str(tmp_path / "none")]


def test_killed_and_started_again_every_row_has_one_record(rows, tmp_path, capfd):
    words = [sys.executable, "-m", "spiketrain", *arguments(rows, tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    begun = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list((tmp_path / "runs").glob("*/checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    begun.send_signal(signal.SIGKILL)  # its run goes on, and holds its lock
    begun.wait()
    assert subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False, timeout=200).returncode == 0
    records = find_records([tmp_path / "runs"])
    assert len(records) == len(list((tmp_path / "runs").glob("*/record.json"))) == 4
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "runs").glob("*/record.json")}
    assert main(arguments(rows, tmp_path)) == 0
    assert {f: f.stat().st_mtime_ns for f in before} == before
    for record in records.values():
        assert len(record.curve) == 3


def test_a_row_that_fails_is_kept_with_its_error_and_the_rest_goes_on(tmp_path, capfd):
    file = tmp_path / "rows.txt"
    file.write_text("digits --epochs 1 --limit 64 --data nowhere\ndigits --epochs 1 --limit 64 --width 0.25\n")
    assert main(arguments(file, tmp_path)) == 1
    assert "unknown data set 'nowhere'" in capfd.readouterr().out.replace("\n", " ")
    states = [job.state for job in jobs([recipe_of(line.split()) for line in file.read_text().splitlines()], tmp_path / "runs", [])]
    assert states == ["failed", "done"]


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
    assert "8 runs" in out and "PFLOP" in out and not (tmp_path / "runs").exists()


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


def test_wrong_seeds_are_one_line(tmp_path, capsys):
    assert main(["bench", "digits-grid", "--seeds", "a,b"]) == 2
    assert "--seeds a,b" in capsys.readouterr().err


def test_a_model_file_is_run_only_when_it_is_named(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("from spiketrain.models.convnet import pooling\ndef tiny(plan):\n    return pooling([(8, 1)], plan)\n")
    spec = f"{file}:tiny"
    run = ["train", "digits", "--epochs", "1", "--limit", "64", "--into", str(tmp_path / "run"), "--quiet"]
    assert main([*run, "--model", spec]) == 0
    from spiketrain import models

    models.MODELS.pop(spec)
    file.write_text(f"raise SystemExit('run')  # {Path(__file__).name}\n")
    assert main(["eval", str(tmp_path / "run")]) == 2
    assert "name it again" in capsys.readouterr().err
