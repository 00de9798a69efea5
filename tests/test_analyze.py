"""`spiketrain analyze`: what it says of a network is true of it."""

import json

import pytest
import torch

from spiketrain import corrupt
from spiketrain.analyze import BINS, analyze
from spiketrain.cli import main
from spiketrain.trained import open_record


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyze") / "run"
    assert main(["train", "digits", "--epochs", "4", "--into", str(folder), "--quiet", "--width", "0.5"]) == 0
    return folder


def test_the_analysis_agrees_with_the_record(run):
    trained = open_record(run)
    found = analyze(trained, 0)
    record = trained.record
    assert found["samples"] == record.data["test"] and found["accuracy"] == pytest.approx(record.test_accuracy, abs=0.3)
    assert found["accuracy_by_steps"][:4] == pytest.approx(record.accuracy_by_step, abs=0.3) and len(found["accuracy_by_steps"]) == 8
    for layer in found["layers"]:
        assert layer["rate"] == pytest.approx(record.firing_rates[layer["name"]], abs=1e-3)
        assert sum(layer["rate_by_step"]) / 4 == pytest.approx(layer["rate"], abs=1e-5)
        assert len(layer["potentials"]) == BINS and sum(layer["potentials"]) == pytest.approx(1, abs=1e-4)
        assert 0 <= layer["silent"] + layer["saturated"] <= 1
    rows = found["operations"]["layers"]
    assert [row["input"] for row in rows] == ["real", "spikes", "spikes", "spikes"] and rows[0]["times"] == 1 and rows[1]["times"] == 4
    assert sum(row["macs_per_step"] for row in rows) == record.macs_per_step
    assert rows[1]["input_rate"] == pytest.approx(found["layers"][0]["rate"], abs=1e-4)
    assert found["operations"]["totals"]["neuron_updates"] == 4 * sum(layer["neurons"] for layer in found["layers"])
    assert len(found["features"]["x"]) == len(found["features"]["label"]) == record.data["test"]
    assert trained.network.steps == 4  # as it was


def test_the_share_of_potentials_above_threshold_is_the_firing_rate(run):
    found = analyze(open_record(run), 100)
    for layer in found["layers"]:
        above = sum(layer["potentials"][int(BINS * 5 / 8) :])  # bins from u = threshold on, of −4 … 4
        assert above == pytest.approx(layer["rate"], abs=1e-3)


def test_the_same_seed_gives_the_same_analysis(run, tmp_path, capsys):
    for name in "ab":
        assert main(["analyze", str(run), "--samples", "60", "--out", str(tmp_path / name)]) == 0
    a, b = (json.loads((tmp_path / name / "analysis.json").read_text()) for name in "ab")
    assert a == b and (tmp_path / "a" / "analysis.png").stat().st_size > 10_000
    assert "compare them only with each other" in capsys.readouterr().out


def test_a_dead_network_is_analysed_too(tmp_path, capsys):
    words = "train digits --epochs 1 --limit 64 --width 0.25 --threshold 1000 --quiet --analyze --into".split()
    assert main([*words, str(tmp_path / "run")]) == 0
    found = json.loads((tmp_path / "run" / "analysis.json").read_text())
    assert all(layer["silent"] == 1 and layer["rate"] == 0 for layer in found["layers"]) and found["features"] == {}
    assert found["operations"]["totals"]["sops"] == 0 < found["operations"]["totals"]["energy_nj"]


@pytest.mark.parametrize("kind", [*corrupt.IMAGES, *corrupt.EVENTS])
def test_damage_is_seeded_and_keeps_shape_dtype_and_input(kind):
    damage, levels = corrupt.IMAGES.get(kind) or corrupt.EVENTS[kind]
    shape = (5, 3, 12, 12) if kind in corrupt.IMAGES else (5, 4, 2, 12, 12)
    x = torch.randint(0, 9, shape, dtype=torch.uint8)
    before = x.clone()
    one, two = (damage(x, levels[-1], torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, two) and one.shape == x.shape and one.dtype == x.dtype and torch.equal(x, before)
    assert not torch.equal(one, x)


def test_dropped_events_are_dropped_at_their_rate():
    x = torch.full((4, 3, 2, 30, 30), 10, dtype=torch.uint8)
    kept = corrupt.drop_events(x, 0.3, torch.Generator().manual_seed(0)).float()
    assert kept.max() <= 10 and kept.mean() == pytest.approx(7, abs=0.1)
    assert corrupt.noise_events(x, 0.05, torch.Generator().manual_seed(0)).float().mean() == pytest.approx(10.05, abs=0.02)


def test_wrong_input_is_one_line(run, tmp_path, capsys):
    assert main(["analyze", str(tmp_path)]) == 2
    assert main(["analyze", str(run), "--samples", "-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 2
