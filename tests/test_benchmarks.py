"""The benchmarks run to their end on tiny shapes, and print no time where a result is wrong. No timing is asserted."""

import importlib
import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """Imports a benchmark's file; the peers are absent, whatever is installed."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(importlib.import_module("peers"), "NAMES", ())
    return importlib.import_module


def run(monkeypatch, module, *words):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", "--quick", *words])
    module.main()


QUICK = {
    "kernel": ("--rounds", "2", "--layouts", "NHWC"),
    "convolutions": ("--rounds", "2", "--network", "resnet18", "--layouts", "NHWC"),
    "step": ("--rounds", "2", "--network", "three_convnet"),
    "inference": ("--rounds", "2", "--networks", "three_convnet"),
    "optimizer": ("--rounds", "2"),
    "memory": ("--network", "three_convnet", "--sides", "reference"),
    "time_steps": ("--rounds", "2"),
}


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_run_ends_with_a_record(name, bench, monkeypatch, tmp_path):
    run(monkeypatch, bench(name), *QUICK[name], "--out", str(tmp_path / "out.json"))
    made = json.loads((tmp_path / "out.json").read_text())
    assert made["benchmark"] == name
    assert made["versions"]["torch"] == importlib.metadata.version("torch")
    assert made["machine"]["processor"]
    assert made["layers"] if name == "convolutions" else made["rows"]
    assert all(check["good"] for check in made.get("checks", []))


def test_a_step_s_record_has_everyone_and_the_bound(bench, monkeypatch, tmp_path):
    run(monkeypatch, bench("step"), *QUICK["step"], "--out", str(tmp_path / "out.json"))
    made = json.loads((tmp_path / "out.json").read_text())
    sides = {row["side"] for row in made["rows"]}
    assert {"ours, bf16 NHWC", "ours, fp32 NHWC", "looped over time, fp32 NCHW", "ANN, batch T·B, bf16 NHWC"} <= sides
    assert min(row["times_bound"] for row in made["rows"] if row["side"].startswith("convolutions alone")) == 1.0
    assert not any("SpikingJelly" in side for side in sides)


def wrong(layer):
    """What a wrong fast kernel would give: one spike too many."""

    def spoiled(x):
        s = layer(x)
        spoil = torch.zeros_like(s)
        spoil[(0,) * s.dim()] = 1
        return s + spoil

    return spoiled


def test_no_time_is_printed_where_a_kernel_is_wrong(bench, monkeypatch, tmp_path, capsys):
    kernel = bench("kernel")
    right = kernel.ours


    def ours(name, channels=0):
        return right(name, channels) if name == "reference" else wrong(right(name, channels))

    monkeypatch.setattr(kernel, "ours", ours)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, kernel, *QUICK["kernel"], "--norms", "without", "--out", str(tmp_path / "out.json"))
    printed = capsys.readouterr().out
    assert ended.value.code == 1
    assert "WRONG: auto, fp32 NHWC: spikes that differ" in printed
    assert "quartiles" not in printed
    assert not (tmp_path / "out.json").exists()


def test_no_time_is_printed_where_a_network_s_gradient_is_wrong(bench, monkeypatch, tmp_path, capsys):
    sides, correctness = bench("sides"), bench("correctness")
    right = sides.ours

    def ours(**changes):
        def build(network, steps):
            made = right(**changes)(network, steps)
            if changes.get("kernel") == "auto":  # a thousandth too much in one gradient
                next(p for p in made.parameters() if p.requires_grad).register_hook(lambda g: g * 1.001)
            return made

        return build

    monkeypatch.setattr(correctness, "ours", ours)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, bench("step"), *QUICK["step"], "--out", str(tmp_path / "out.json"))
    printed = capsys.readouterr().out
    assert ended.value.code == 1
    assert "WRONG: ours, kernel=auto, three_convnet, T=3, float64: gradients" in printed
    assert "images/s" not in printed


def test_a_nan_is_not_right(bench):
    gate = bench("common").Gate()
    gate.check("a", float("nan"), 1.0)
    with pytest.raises(SystemExit):
        gate.close()


def test_a_gate_without_a_check_does_not_open(bench):
    with pytest.raises(SystemExit):
        bench("common").Gate().close()


@pytest.mark.parametrize("name", ["cifar_convnet", "resnet18", "three_convnet", "dvs_convnet"])
def test_the_plain_networks_are_ours(name, bench):
    networks, sides = bench("networks"), bench("sides")
    network = networks.tiny(networks.NETWORKS[name])
    mine, plain = sides.ours(neuron="relu")(network, 1).eval(), network.build(networks.Parts()).eval()
    sides.same_weights(mine, plain)
    x = torch.randn(2, *network.sample)
    torch.testing.assert_close(mine(x)[0], plain(x), rtol=1e-4, atol=1e-5)


def test_the_convolutions_of_a_network_are_counted(bench):
    networks = bench("networks")
    layers = networks.convolutions(networks.NETWORKS["cifar_convnet"], 64, 4)
    macs = [layer.flop / 2 / layer.images for layer in layers]
    assert [round(m / 1e6, 3) for m in macs] == [7.078, 603.98, 150.995, 150.995, 75.497, 150.995, 75.497, 150.995]
    assert [layer.images for layer in layers] == [64, *[256] * 7]
    assert networks.convolutions(networks.NETWORKS["dvs_convnet"], 16, 10)[0].images == 160
