"""Operation counts against counts by hand, and against the older benchmark's own table."""

import pytest
import torch
from torch import nn

from spiketrain import models
from spiketrain.operations import PICOJOULE_MAC, PICOJOULE_SOP, Counter, fan_out, older_macs, quantum, totals


@pytest.mark.parametrize(("model", "said"), [("dvs_convnet7", 7503), ("resnet18_pooled", 3149)])
def test_the_older_table_counts_its_own_networks_like_this(model, said):
    network = models.build(model, in_channels=2, num_classes=100, steps=10)
    assert round(older_macs(network, (2, 48, 48), 10)) == said
    assert models.count_macs(network, (2, 48, 48)) * 10 / 1e6 < said  # ours has no norms and no pooling in it


@pytest.mark.parametrize(("stride", "padding", "size"), [(1, 1, 5), (2, 1, 6), (2, 0, 7), (1, 0, 4)])
def test_fan_out_is_how_often_an_input_is_added(stride, padding, size):
    layer = nn.Conv2d(1, 3, 3, stride, padding, bias=False)
    nn.init.ones_(layer.weight)
    x = torch.zeros(1, 1, size, size)
    found = fan_out(layer, x)
    for i in range(size):
        for j in range(size):
            x.zero_()
            x[0, 0, i, j] = 1
            assert int(layer(x).sum()) == int(found[0, i, j])


def test_quantum_finds_spikes_counts_and_means_of_spikes():
    assert quantum(torch.tensor([0.0, 1.0])) == quantum(torch.tensor([0.0, 7.0])) == 1
    assert quantum(torch.tensor([0.25, 0.75])) == 4
    assert quantum(torch.tensor([0.3])) is quantum(torch.tensor([-1.0])) is None


class Two(nn.Module):
    """A convolution that sees the image once, a fixed spike pattern, and a linear layer that sees it at each of T steps."""

    def __init__(self, spikes):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Linear(4, 5, bias=False)
        self.spikes = spikes

    def forward(self, x):
        self.conv(x[0])
        return self.fc(self.spikes.flatten(0, 1)).unflatten(0, self.spikes.shape[:2])


def test_two_layers_counted_by_hand():
    steps, batch = 3, 2
    spikes = torch.zeros(steps, batch, 4)
    spikes[0, 0, :3] = 1
    spikes[2, 1, 1] = 1  # four spikes of 24 inputs
    network = models.Network(Two(spikes), channels=1, steps=steps)
    with Counter(network, batch) as counter:
        network(torch.rand(batch, 1, 4, 4) + 0.01)
    conv, fc = counter.rows()
    assert (conv["macs"], conv["times"], conv["sops"]) == (2 * 9 * 16, 1, 0)
    assert (fc["macs"], fc["macs_per_step"], fc["times"]) == (0, 20, 3)
    assert fc["input_rate"] == pytest.approx(4 / 24, abs=1e-6) and fc["sops"] == 4 * 5 / 2 and fc["sops_estimate"] == 4 / 24 * 3 * 20
    found = totals([conv, fc], neuron_updates=12)
    assert found["neuron_updates"] == 12
    assert found["energy_nj"] == pytest.approx((288 * PICOJOULE_MAC + 10 * PICOJOULE_SOP) / 1e3, abs=1e-3)
    assert found["ann_energy_nj"] == pytest.approx((288 + 20) * PICOJOULE_MAC / 1e3, abs=1e-3)
    assert found["energy_nj_first_layer_every_step"] == pytest.approx(found["energy_nj"] + 2 * 288 * PICOJOULE_MAC / 1e3, abs=1e-3)


def test_a_first_layer_of_frames_has_sops_where_they_are_binary_and_macs_where_they_hold_counts():
    network = models.build("small_convnet", width=0.25, in_channels=2, num_classes=10, steps=3)
    frames = (torch.rand(3, 2, 2, 16, 16) < 0.2).float()
    for scale, kind in ((1, "spikes"), (3, "real")):
        with torch.no_grad(), Counter(network, 2) as counter:
            network(scale * frames)
        first = counter.rows()[0]
        assert (first["input"], first["times"]) == (kind, 3)
        assert (first["macs"] > 0) == (kind == "real") and (first["sops"] > 0) == (kind == "spikes")


def test_borders_make_the_exact_count_smaller_than_the_estimate():
    network = models.build("digits_convnet", threshold=0.2, in_channels=1, num_classes=10, steps=2)
    with torch.no_grad(), Counter(network, 4) as counter:
        network(torch.rand(4, 1, 8, 8))
    rows = counter.rows()
    assert sum(row["macs_per_step"] for row in rows) == models.count_macs(network, (1, 8, 8))
    inner = [row for row in rows if row["input"] == "spikes" and "conv" in row["name"] and row["sops"]]
    assert inner and all(row["sops"] < row["sops_estimate"] for row in inner)
