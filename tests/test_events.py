"""Events → frames: against a plain loop, and the properties that must hold whatever the events are."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketrain.data.events import bilinear, cut, narrow, sensor_of, span, to_frames
from spiketrain.data.types import EVENT
from spiketrain.errors import UserError


def make(n, size=(13, 9), length=1000, seed=0, ordered=True):
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT)
    t = rng.integers(0, length, n) + 5_000
    events["t"] = np.sort(t) if ordered else t
    events["x"], events["y"] = rng.integers(0, size[0], n), rng.integers(0, size[1], n)
    events["p"] = rng.integers(0, 2, n)
    return events


def looped(events, bins, steps, size):
    frames = np.zeros((steps, 2, size[1], size[0]), np.int64)
    for event, b in zip(events, bins, strict=True):
        if 0 <= b < steps:
            frames[b, event["p"], event["y"], event["x"]] += 1
    return frames


def time_bins(events, steps):
    """The older benchmark's rule, as FACTS has it: slices by searchsorted of an integer window, remainder dropped."""
    t = events["t"]
    window = (t[-1] - t[0]) // steps
    bins = np.full(len(t), steps)
    for i in range(steps):
        a, b = np.searchsorted(t, [t[0] + i * window, t[0] + (i + 1) * window])
        bins[a:b] = i
    return bins


@pytest.mark.parametrize("steps", [1, 3, 10, 33])
@pytest.mark.parametrize("n", [2, 57, 800])
def test_equal_time_is_the_older_benchmarks_rule(n, steps):
    events = make(n)
    expected = looped(events, time_bins(events, steps), steps, (13, 9))
    assert np.array_equal(to_frames(events, steps, (13, 9)), expected)
    assert expected.sum() < n  # the remainder, and the last event with it, is dropped


def test_order_of_events_does_not_matter():
    events = make(400)
    mixed = np.random.default_rng(1).permutation(events)
    assert np.array_equal(to_frames(events, 7, (13, 9)), to_frames(mixed, 7, (13, 9)))
    for by, kind in (("count", "sum"), ("time", "surface")):
        a, b = (to_frames(e, 7, (13, 9), by=by, kind=kind) for e in (events, np.sort(mixed, order="t", kind="stable")))
        assert a.sum() == pytest.approx(b.sum(), rel=1e-5)


@given(n=st.integers(0, 200), steps=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_equal_count_drops_nothing_and_is_equal(n, steps, seed):
    frames = to_frames(make(n, seed=seed), steps, (13, 9), by="count")
    per_frame = frames.sum((1, 2, 3), dtype=int)
    assert per_frame.sum() == n
    assert per_frame.max() - per_frame.min() <= 1


def test_fixed_window():
    events = make(300)
    bins = (events["t"] - events["t"][0]) // 150
    assert np.array_equal(to_frames(events, 4, (13, 9), by="window", window=150), looped(events, bins, 4, (13, 9)))
    assert to_frames(events, 20, (13, 9), by="window", window=150)[8:].sum() == 0


@given(
    n=st.integers(0, 150),
    sensor=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    out=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_resizing_events_conserves_their_sum(n, sensor, out, seed):
    frames = to_frames(make(n, sensor, seed=seed), 3, sensor, by="count", out_size=out)
    assert frames.shape == (3, 2, out[1], out[0])
    assert frames.sum(dtype=int) == n


def test_resized_events_move_by_whole_number_division_and_small_sensors_are_centred():
    event = np.array([(0, 127, 64, 1)], EVENT)
    assert np.argwhere(to_frames(event, 1, (128, 128), by="count", out_size=48)).tolist() == [[0, 1, 24, 47]]
    event = np.array([(0, 0, 33, 0)], EVENT)
    assert np.argwhere(to_frames(event, 1, (34, 34), by="count", out_size=48)).tolist() == [[0, 0, 40, 7]]


@pytest.mark.parametrize("size, out", [((128, 128), (48, 48)), ((34, 34), (48, 48)), ((13, 9), (1, 5)), ((1, 1), (4, 4))])
def test_bilinear_is_torchs(size, out):
    frames = to_frames(make(500, size), 4, size)
    expected = F.interpolate(torch.from_numpy(frames).float(), (out[1], out[0]), mode="bilinear", align_corners=True)
    assert np.allclose(bilinear(frames, out), expected.numpy(), atol=1e-4)
    assert np.allclose(to_frames(make(500, size), 4, size, out_size=out, resize="bilinear"), expected.numpy(), atol=1e-4)


def test_binary_and_surface():
    events = make(300)
    sums = to_frames(events, 5, (13, 9))
    assert np.array_equal(to_frames(events, 5, (13, 9), kind="binary"), sums > 0)
    surface = to_frames(events, 5, (13, 9), kind="surface")
    assert surface.dtype == np.float32 and surface.min() >= 0 and surface.max() <= 1
    window = (events["t"][-1] - events["t"][0]) // 5
    expected = np.zeros((5, 2, 9, 13))
    for i in range(5):
        end = events["t"][0] + (i + 1) * window
        for t, x, y, p in events[events["t"] < end]:
            expected[i, p, y, x] = np.exp(-(end - t) / window)
    assert np.allclose(surface, expected, atol=1e-5)


def test_counts_are_never_clipped():
    many = np.zeros(300, EVENT)
    frames = to_frames(many, 1, (2, 2), by="count")
    assert frames.dtype == np.int16 and frames.max() == 300
    assert narrow(np.array([255])).dtype == np.uint8
    with pytest.raises(UserError, match="40000 events at one pixel"):
        to_frames(np.zeros(40_000, EVENT), 1, (2, 2), by="count")


@pytest.mark.parametrize("by", ["time", "count", "window"])
@pytest.mark.parametrize("kind", ["sum", "binary", "surface"])
def test_no_event_and_one_event(by, kind):
    assert not to_frames(make(0), 3, (13, 9), by=by, kind=kind, window=10).any()
    assert to_frames(make(1), 3, (13, 9), by=by, kind=kind, window=10).shape == (3, 2, 9, 13)


def test_errors_say_what_is_wrong():
    events = make(10)
    for arguments, text in (
        ({"by": "tim"}, "did you mean 'time'"),
        ({"kind": "sums"}, "did you mean 'sum'"),
        ({"resize": "linear"}, "did you mean 'bilinear'"),
        ({"by": "window"}, "needs window="),
        ({"steps": 0}, "at least 1"),
        ({"size": (5, 9)}, "outside a sensor of 5 pixels along x"),
        ({"size": (13, 3)}, "outside a sensor of 3 pixels along y"),
    ):
        with pytest.raises(UserError, match=text):
            to_frames(**{"events": events, "steps": 3, "size": (13, 9), **arguments})
    events["p"][3] = 2
    with pytest.raises(UserError, match="polarity 2"):
        to_frames(events, 3, (13, 9))


def test_input_is_untouched():
    events = make(100, ordered=False)
    before = events.copy()
    for by in ("time", "count", "window"):
        to_frames(events, 5, (13, 9), by=by, window=100, kind="surface", out_size=4)
    assert np.array_equal(events, before)


def test_cut_span_and_sensor():
    events = make(500, length=10_000)
    parts = cut(events, 1500)
    assert len(parts) == (events["t"][-1] - events["t"][0]) // 1500
    starts = events["t"][0] + 1500 * np.arange(len(parts))
    assert all((a <= p["t"]).all() and (p["t"] < a + 1500).all() for a, p in zip(starts, parts, strict=True))
    assert sum(map(len, parts)) == (events["t"] < starts[-1] + 1500).sum()
    assert cut(make(0), 10) == []
    inside = span(events, 6000, 7000)
    assert np.array_equal(inside, events[(events["t"] >= 6000) & (events["t"] < 7000)])
    assert sensor_of(events) == (13, 9) and sensor_of(make(0)) == (1, 1)


@pytest.mark.parametrize("repeats", [1, 300])
def test_a_large_sensor_with_few_events_counts_the_same(repeats):
    events = np.repeat(make(200, (1280, 720), seed=3), repeats)
    assert np.array_equal(to_frames(events, 2, (1280, 720)), looped(events, time_bins(events, 2), 2, (1280, 720)))
