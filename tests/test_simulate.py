"""The simulated event camera: equation, refractory time, noise, seeds, and the files that it writes."""

import json

import numpy as np
import pytest

from spiketrain.data.event_sets import load
from spiketrain.data.events import to_frames
from spiketrain.data.readers import read
from spiketrain.data.simulate import Camera, _after_rest, _path, _seen, simulate, simulate_batch, simulate_set
from spiketrain.errors import UserError

QUIET = Camera(noise=0, refractory=0)


def square(size=20):
    image = np.zeros((size, size), np.uint8)
    image[6:13, 5:12] = 255
    return image


def looped(image, camera):
    """One pixel after the other, one crossing after the other."""
    light = np.log(image * ((1 - camera.dark) / 255) + camera.dark).astype(np.float32)[None]
    seen = [_seen(light, shift, camera.amplitude)[0] for shift in _path(camera)]
    duration, events = camera.saccade / camera.moves, []
    for y in range(seen[0].shape[0]):
        for x in range(seen[0].shape[1]):
            level = float(seen[0][y, x])
            for k in range(1, len(seen)):
                before, now = float(seen[k - 1][y, x]), float(seen[k][y, x])
                while abs(now - level) >= camera.threshold * (1 - 1e-4):
                    level += np.copysign(camera.threshold, now - level)
                    events.append((int((k - 1 + (level - before) / (now - before)) * duration), x, y, int(now > before)))
    return sorted(events)


def test_events_are_the_threshold_crossings_of_the_logarithm():
    camera = Camera(noise=0, refractory=0, threshold=0.37, moves=10)
    found = simulate(square(), camera).events
    expected = looped(square(), camera)
    assert len(found) == len(expected) > 1000
    assert sorted(zip(*(found[c].tolist() for c in "xyp"), strict=True)) == sorted(e[1:] for e in expected)
    assert np.abs(found["t"] - [e[0] for e in expected]).max() <= 3  # µs: one is float32


def test_an_even_image_is_silent_and_a_bright_edge_is_on_then_off():
    assert len(simulate(np.full((9, 9), 80, np.uint8), QUIET)) == 0
    events = simulate(square(), QUIET).events
    assert (np.diff(events["t"]) >= 0).all() and events["t"][0] >= 0 and events["t"][-1] <= 300_000
    # the camera comes back to where it started: what went up has come down
    net = np.zeros((26, 26), int)
    np.add.at(net, (events["y"], events["x"]), 2 * events["p"].astype(int) - 1)
    assert not net.any()


def test_three_saccades_fill_the_time():
    counts = to_frames(simulate(square(), QUIET).events, 3, (26, 26), by="window", window=100_000).sum((1, 2, 3), dtype=int)
    assert (counts > 0.2 * counts.sum()).all()


def test_same_seed_same_recording_alone_or_in_a_batch():
    images = np.stack([square(), square()[::-1].copy(), np.zeros((20, 20), np.uint8)])
    together = list(simulate_batch(images, Camera(), [5, 6, 7]))
    for image, seed, recording in zip(images, (5, 6, 7), together, strict=True):
        assert np.array_equal(simulate(image, Camera(), seed).events, recording.events)
    assert not np.array_equal(simulate(images[0], seed=1).events, simulate(images[0], seed=2).events)
    assert together[0].size == (26, 26)


def test_noise_comes_at_its_rate():
    events = simulate(np.zeros((94, 94), np.uint8), Camera(noise=2.0)).events
    assert len(events) == pytest.approx(2.0 * 100 * 100 * 0.3, rel=0.05)
    assert events["x"].max() == 99 and events["p"].mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rest", [0, 1, 300, 5000])
def test_refractory_time_is_kept_and_drops_no_more_than_it_must(rest):
    rng = np.random.default_rng(0)
    pixel, t = rng.integers(0, 5, 800), rng.integers(0, 30_000, 800)
    found = _after_rest(pixel, t, np.zeros(800, np.uint8), rest)
    expected, last = [], {}
    for when, where in sorted(zip(t.tolist(), pixel.tolist(), strict=True)):
        if where not in last or when - last[where] >= rest:
            expected.append((when, where))
            last[where] = when
    assert list(zip(found[1].tolist(), found[0].tolist(), strict=True)) == expected


def test_colour_and_zoom():
    colour = np.stack([square()] * 3)
    grey = simulate(square(), QUIET)
    assert np.array_equal(simulate(colour, QUIET).events, grey.events)
    assert np.array_equal(simulate(colour.transpose(1, 2, 0), QUIET).events, grey.events)
    assert simulate(square(), Camera(zoom=2, amplitude=5)).size == (50, 50)


def test_bad_input_is_one_clear_line():
    for image in (square().astype(float), np.zeros((2, 4, 4), np.uint8)):
        with pytest.raises(UserError, match="uint8 images"):
            simulate(image)
    for wrong in ({"threshold": 0}, {"moves": 0}, {"noise": -1}, {"dark": 0}, {"amplitude": 0}):
        with pytest.raises(UserError, match="camera"):
            Camera(**wrong)


def test_a_set_in_a_real_format(tmp_path):
    images = np.stack([np.roll(square(), i, 1) for i in range(6)])
    labels = np.array([0, 1, 0, 1, 0, 1])
    for part in ("train", "test"):
        assert simulate_set(images, labels, ["a", "b"], tmp_path / "set", part) == 6
    files = sorted(f.relative_to(tmp_path / "set").as_posix() for f in (tmp_path / "set").rglob("*.bin"))
    assert files[:3] == ["test/a/00000.bin", "test/a/00002.bin", "test/a/00004.bin"] and len(files) == 12
    recording = read(tmp_path / "set" / "train" / "b" / "00003.bin")
    quiet = simulate(images[3], Camera(noise=0))
    assert len(quiet) <= len(recording) and recording.events["x"].max() < 26
    assert json.loads((tmp_path / "set" / "recordings.json").read_text())["sensor"] == [26, 26]
    data = load("set", tmp_path, steps=3, size=None)
    assert data.train.inputs.shape == (6, 3, 2, 26, 26) and data.split_rule == "official"
    assert not np.array_equal(data.train.inputs, data.test.inputs)  # other noise
    with pytest.raises(UserError, match="already there"):
        simulate_set(images, labels, ["a", "b"], tmp_path / "set", "test")
    with pytest.raises(UserError, match="format to write"):
        simulate_set(images, labels, ["a", "b"], tmp_path / "set2", format="bim")
    assert sorted(f.name for f in (tmp_path / "set").iterdir()) == ["recordings.json", "test", "train"]
