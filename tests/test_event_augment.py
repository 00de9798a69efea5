"""Augmentations of event frames: properties that all of them share, and the equation of each."""

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as VF
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketrain.data import event_augment as ea
from spiketrain.data import event_mix as em
from spiketrain.data.event_prepare import EventPrepare
from spiketrain.errors import UserError

MOVES = ["flip", "crop", "rotate", "shear", "roll", "crop-flip-rotate", "nda", "polarity-flip", "cutout", "cutout-time"]
SUM_STAYS = ["flip", "roll", "polarity-flip", "time-jitter"]
ONLY_LOSES = ["cutout", "cutout-time", "event-drop"]


def batch(steps=12, n=6, height=24, width=24, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.poisson(torch.full((steps, n, 2, height, width), 0.3), generator=generator).to(dtype)


def soft(n=6, classes=4):
    return em.soft(torch.arange(n) % classes, classes)


def seeded(function, *arguments, seed=7):
    torch.manual_seed(seed)
    return function(*arguments)


@pytest.mark.parametrize("name", ea.AUGMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shape_dtype_seed_and_input(name, dtype):
    frames = batch(dtype=dtype)
    before = frames.clone()
    out = seeded(ea.AUGMENTATIONS[name], frames)
    assert out.shape == frames.shape and out.dtype == dtype
    assert torch.equal(frames, before), "input was written to"
    assert torch.equal(out, seeded(ea.AUGMENTATIONS[name], frames))
    assert not torch.equal(out, frames)
    assert (out >= 0).all() and out.isfinite().all()


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(3, 20), st.integers(3, 20)),
    name=st.sampled_from(sorted(ea.AUGMENTATIONS)),
    seed=st.integers(0, 99),
)
@settings(max_examples=120, deadline=None)
def test_any_size(shape, name, seed):
    frames = batch(*shape, seed=seed)
    out = seeded(ea.AUGMENTATIONS[name], frames, seed=seed)
    assert out.shape == frames.shape
    if name in SUM_STAYS:
        assert out.sum() == frames.sum()
    if name in ONLY_LOSES:
        assert (out <= frames).all()
    if name in MOVES:
        assert set(out.unique().tolist()) <= {0.0, *frames.unique().tolist()}


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_events_takes_bytes(name):
    out = seeded(ea.AUGMENTATIONS[name], batch(dtype=torch.uint8))
    assert out.dtype == torch.uint8
    assert torch.equal(out.float(), seeded(ea.AUGMENTATIONS[name], batch()))


@pytest.mark.parametrize("name", ["blur", "salt", "randaugment", "event-drop", "time-jitter"])
def test_what_needs_fractions_says_so(name):
    with pytest.raises(UserError, match="floating-point"):
        ea.AUGMENTATIONS[name](batch(dtype=torch.uint8))


@pytest.mark.parametrize("name", MOVES)
def test_all_frames_of_a_sample_move_alike(name):
    if name == "cutout-time":
        pytest.skip("empties frames by design")
    frames = batch(steps=1).expand(4, -1, -1, -1, -1)
    out = seeded(ea.AUGMENTATIONS[name], frames)
    assert torch.equal(out, out[:1].expand_as(out))


@pytest.mark.parametrize("angle", [-25.0, 10.0, 33.0])
@pytest.mark.parametrize("size", [(24, 24), (17, 30)])
def test_rotation_is_torchvisions(angle, size):
    frames = batch(3, 2, *size)
    source = ea._turned(frames, torch.full((2,), angle), torch.zeros(2))
    assert torch.equal(ea._move(frames, source), VF.rotate(frames.flatten(0, 2), angle).view(frames.shape))


def test_shear_slants_about_the_centre():
    frames = torch.zeros(1, 1, 2, 21, 21)
    frames[..., 10] = 1  # an upright line
    out = ea._move(frames, ea._turned(frames, torch.zeros(1), torch.tensor([45.0])))
    assert out[0, 0, 0, 10, 10] == 1 and out.sum() == frames.sum()
    assert [int(row.argmax()) for row in out[0, 0, 0]] == list(range(20, -1, -1))


def test_crop_is_a_shift_with_empty_border():
    frames = batch(2, 50)
    out = seeded(ea.crop, frames, 3)
    padded = torch.nn.functional.pad(frames, (3, 3, 3, 3))
    for b in range(50):
        views = [padded[:, b, :, y : y + 24, x : x + 24] for y in range(7) for x in range(7)]
        assert any(torch.equal(out[:, b], view) for view in views)


def test_cutout_empties_one_square():
    out = seeded(ea.cutout, torch.ones(3, 200, 2, 48, 48), 0.25)
    for b in range(200):
        rows, columns = (out[0, b, 0] == 0).nonzero(as_tuple=True)
        height, width = (int(v.max() - v.min()) + 1 for v in (rows, columns))
        assert len(rows) == height * width and height <= 12 and width <= 12


def test_cutout_time_empties_neighbours():
    out = seeded(ea.cutout_time, torch.ones(20, 100, 2, 2, 2), 0.5)
    empty = (out[:, :, 0, 0, 0] == 0).float()
    assert empty.sum(0).max() <= 10
    assert ((empty[1:] - empty[:-1]) > 0).sum(0).max() <= 1


def test_blur_keeps_a_uniform_frame_and_spreads_an_event():
    assert torch.allclose(ea.blur(torch.ones(2, 3, 2, 9, 9)), torch.ones(2, 3, 2, 9, 9))
    frames = torch.zeros(1, 1, 2, 11, 11)
    frames[..., 5, 5] = 1
    out = seeded(ea.blur, frames, 1.0)
    assert torch.allclose(out.sum((-1, -2)), torch.ones(1, 1, 2)) and (out[..., 3:8, 3:8] > 0).any()
    assert out[..., :3, :].sum() == 0


def test_salt_only_adds_ones():
    frames = batch()
    added = seeded(ea.salt, frames) - frames
    assert set(added.unique().tolist()) == {0.0, 1.0} and added.mean() < 0.15


def test_event_drop_keeps_the_share_it_should():
    frames = torch.full((10, 4000, 2, 4, 4), 5.0)
    kept = seeded(ea.event_drop, frames).mean((0, 2, 3, 4)) / 5
    assert (kept == 1).float().mean() == pytest.approx(0.25 + 0.08, abs=0.1)  # and rectangles too small for 4 pixels
    assert 0.5 < kept.mean() < 0.95


def test_thinning_counts_is_dropping_events():
    kept = seeded(ea._thin, torch.full((200_000,), 4.0), torch.tensor(0.3))
    shares = torch.bincount(kept.long(), minlength=5) / len(kept)
    expected = torch.tensor([0.2401, 0.4116, 0.2646, 0.0756, 0.0081])
    assert torch.allclose(shares, expected, atol=5e-3)
    fractions = seeded(ea._thin, torch.full((100_000,), 1.5), torch.tensor(0.5))
    assert set(fractions.unique().tolist()) == {0.0, 0.5, 1.0, 1.5} and fractions.mean() == pytest.approx(0.75, abs=0.01)


def test_time_jitter_moves_to_neighbours_only():
    frames = torch.zeros(7, 1, 2, 3, 3)
    frames[3] = 100
    out = seeded(ea.time_jitter, frames, 0.4)
    assert out.sum() == frames.sum() and out[[0, 1, 5, 6]].sum() == 0
    assert torch.equal(out.sum(0), frames.sum(0))
    assert 0.1 < out[2].sum() / frames.sum() < 0.3


def test_randaugment_uses_all_four():
    frames = torch.ones(8, 300, 2, 16, 16)
    out = seeded(ea.randaugment, frames, 1)
    whole = [(out[:, b] == 1).all() for b in range(300)]
    more = [bool((out[:, b] == 2).any()) for b in range(300)]
    assert 30 < sum(map(bool, whole)) < 150  # blur of a uniform frame, or a stretch of no frames
    assert 40 < sum(more) < 110


@pytest.mark.parametrize("name", em.MIXES)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 16), st.integers(1, 16)),
    seed=st.integers(0, 999),
    beta=st.sampled_from([0.2, 1.0, 2.0]),
    empty=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_mixing_properties(name, shape, seed, beta, empty):
    frames, labels = batch(*shape, seed=seed), soft(shape[1])
    if empty:
        frames[:, 0] = 0  # a recording without events
    before = frames.clone()
    torch.manual_seed(seed)
    out, mixed = em.MIXES[name](frames, labels, beta)
    assert torch.equal(frames, before) and torch.equal(labels, soft(shape[1]))
    assert out.shape == frames.shape and mixed.shape == labels.shape
    assert mixed.isfinite().all() and (mixed >= 0).all() and torch.allclose(mixed.sum(1), torch.ones(shape[1]))
    torch.manual_seed(seed)
    again = em.MIXES[name](frames, labels, beta)
    assert torch.equal(out, again[0]) and torch.equal(mixed, again[1])
    untouched = torch.tensor([torch.equal(out[:, b], frames[:, b]) for b in range(shape[1])])
    torch.manual_seed(seed)
    chosen, _, _ = em._draws(frames, labels, beta, 0.5)
    assert untouched[~chosen].all() and torch.equal(mixed[~chosen], labels[~chosen])


@pytest.mark.parametrize("name", em.MIXES)
def test_mixing_wants_soft_labels(name):
    with pytest.raises(UserError, match=r"soft labels \[6, classes\]"):
        em.MIXES[name](batch(), torch.arange(6))


def test_mixup_is_linear():
    frames, labels = batch(), soft()
    torch.manual_seed(3)
    chosen, lam, partner = em._draws(frames, labels, 2.0, 1.0)
    out, mixed = seeded(em.mixup, frames, labels, 2.0, 1.0, seed=3)
    assert chosen.all()
    assert torch.allclose(out[:, 2], lam[2] * frames[:, 2] + (1 - lam[2]) * frames[:, partner[2]])
    assert torch.allclose(mixed[2], lam[2] * labels[2] + (1 - lam[2]) * labels[partner[2]])


def test_cutmix_weighs_by_area():
    frames = torch.arange(6.0).view(1, 6, 1, 1, 1).expand(2, 6, 2, 20, 20)
    out, mixed = seeded(em.cutmix, frames, soft(6, 6), 2.0, 1.0)
    for b in range(6):
        area = (out[0, b, 0] == b).float().mean()
        assert mixed[b, b] == pytest.approx(float(area), abs=1e-6)
        assert torch.equal(out[:, b], out[:1, b, :1].expand(2, 2, 20, 20))


def reference_eventmix(x1, x2, y1, y2, mask):
    """As FACTS 5.4 writes it, for one sample: frames [T,2,H,W], mask [T,H,W]."""
    r1 = (x1 * mask[:, None]).sum() / x1.sum()
    r2 = (x2 * mask[:, None]).sum() / x2.sum()
    lam = 1 - r2 / (1 - r1 + r2)
    return np.where(mask[:, None], x2, x1), lam * y1 + (1 - lam) * y2


def test_eventmix_is_the_older_benchmarks():
    frames, labels = batch(n=8), soft(8)
    torch.manual_seed(5)
    chosen, lam, partner = em._draws(frames, labels, 2.0, 0.7)
    mask = em._mixture(frames, lam, 3)
    out, mixed = seeded(em.eventmix, frames, labels, 2.0, 0.7, seed=5)
    for b in range(8):
        x, y = frames[:, b].numpy(), labels[b].numpy()
        if chosen[b]:
            p = int(partner[b])
            x, y = reference_eventmix(x, frames[:, p].numpy(), y, labels[p].numpy(), mask[b].numpy())
        assert np.array_equal(out[:, b].numpy(), x)
        assert np.allclose(mixed[b].numpy(), y, atol=1e-6)


def test_eventmix_mask_is_above_the_quantile_of_a_gaussian_mixture():
    frames = batch(n=5, height=11, width=17)
    lam = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    mask = seeded(em._mixture, frames, lam, 3)
    assert mask.shape == (5, 12, 11, 17)
    volume = mask[0].numel()
    assert torch.allclose(mask.float().mean((1, 2, 3)), lam, atol=1.5 / volume)
    torch.manual_seed(7)
    axes = []
    for size in (12, 11, 17):
        middle = torch.randint(0, size, (5, 3, 1))
        deviation = torch.rand(5, 3, 1).clamp(min=0.1) * size / 2
        axes.append((((torch.arange(size) - middle) / deviation) ** 2).numpy())
    weight = torch.rand(5, 3).numpy()
    t, y, x = axes
    distance = t[:, :, :, None, None] + y[:, :, None, :, None] + x[:, :, None, None, :]
    field = (weight[:, :, None, None, None] * np.exp(-0.5 * distance)).sum(1)
    for b in range(5):
        assert np.array_equal(mask[b].numpy(), field[b] > np.quantile(field[b], 1 - float(lam[b])))


def test_eventmix_of_recordings_without_events():
    frames, labels = torch.zeros(3, 4, 2, 8, 8), soft(4)
    out, mixed = seeded(em.eventmix, frames, labels, 2.0, 1.0)
    assert not out.any() and mixed.isfinite().all()
    frames[:, 0] = 1
    out, mixed = seeded(em.eventmix, frames, labels, 2.0, 1.0)
    full = [b for b in range(1, 4) if out[:, b].any()]
    assert all(mixed[b, 0] == pytest.approx(1.0) for b in full), "only class 0 has events"


def test_a_batch_is_prepared_by_name():
    stored = torch.randint(0, 9, (4, 5, 2, 12, 12), dtype=torch.uint8)
    kept, labels = stored.clone(), torch.tensor([0, 1, 2, 0])
    prepare = EventPrepare(3, ("randaugment", "crop-flip-rotate", "eventmix"), mix_prob=1.0)
    frames, weights = seeded(prepare.train, stored, labels)
    again, _ = seeded(prepare.train, stored, labels)
    assert frames.shape == (5, 4, 2, 12, 12) and frames.dtype == torch.float32 and torch.equal(frames, again)
    assert frames[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(weights.sum(-1), torch.ones(4))
    assert torch.equal(prepare.train(stored, labels, mix=False)[1], labels)
    assert torch.equal(prepare.plain(stored), stored.transpose(0, 1).float()) and torch.equal(stored, kept)
    with pytest.raises(UserError, match="did you mean 'eventmix'"):
        EventPrepare(3, ("event-mix",))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", ["crop-flip-rotate", "nda", "cutout", "blur"])
def test_same_on_the_gpu(name):
    frames = batch()
    out = seeded(ea.AUGMENTATIONS[name], frames.cuda())
    assert torch.allclose(out.cpu(), seeded(ea.AUGMENTATIONS[name], frames), atol=1e-6)
