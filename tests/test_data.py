"""Objectives, recipes, image data sets, their augmentation and batches."""

import numpy as np
import pytest
import torch
from PIL import Image

from spiketrain import recipes
from spiketrain.data import sets
from spiketrain.data.image_augment import OPERATIONS, ImageAugment, RandAugment, crop_and_flip
from spiketrain.data.loader import Loader, seed_everything
from spiketrain.errors import UserError
from spiketrain.objective import Objective, confusion, predict


def test_losses():
    logits, labels = torch.randn(4, 6, 5, dtype=torch.float64), torch.randint(0, 5, (6,))
    mean = logits.mean(0).float()
    p = mean.log_softmax(-1)
    nll = -p[torch.arange(6), labels].mean()
    torch.testing.assert_close(Objective("ce")(logits, labels), nll)
    torch.testing.assert_close(Objective("ce", 0.1)(logits, labels), 0.9 * nll - 0.1 * p.mean())
    each = torch.stack([-o.float().log_softmax(-1)[torch.arange(6), labels].mean() for o in logits]).mean()
    torch.testing.assert_close(Objective("tet")(logits, labels), each)
    pulled = 0.95 * each + 0.05 * (logits.float() - 1).square().mean()
    torch.testing.assert_close(Objective("tet", tet_lambda=0.05)(logits, labels), pulled)
    onehot = torch.nn.functional.one_hot(labels, 5).float()
    mse = (mean - onehot).square().mean()
    torch.testing.assert_close(Objective("mse")(logits, labels), mse)
    torch.testing.assert_close(Objective("mix")(logits, labels), 0.1 * nll + mse)
    for name in ("ce", "tet", "mse", "mix"):
        torch.testing.assert_close(Objective(name)(logits, onehot), Objective(name)(logits, labels))


def test_prediction_and_confusion():
    logits = torch.tensor([[[1.0, 0], [0, 0]], [[0.0, 0], [0, 1]]])
    assert predict(logits).tolist() == [0, 1]
    assert confusion(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2).tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_is_made_and_survives_json(name):
    recipe = recipes.get(name)
    assert recipe.name == name
    assert recipes.Recipe.from_dict(recipe.to_dict()) == recipe


def test_the_rows_of_the_older_table():
    rows = recipes.seed.rows()
    assert len(rows) == len({r.name for r in rows}) == 54
    for row in rows:
        recipe = recipes.get(row.name)
        assert (recipe.epochs, recipe.weight_decay, recipe.strict, recipe.norm, recipe.threshold) == (600, 0.01, True, "step", 0.5)
        assert recipe.lr == pytest.approx(6.25e-4)
        assert (recipe.neuron, recipe.surrogate, recipe.steps) == (row.neuron, row.surrogate, row.steps)
    best = max(rows, key=lambda r: r.accuracy)
    assert (best.accuracy, best.data, best.surrogate) == (96.04, "cifar10", "qgate")


@pytest.mark.parametrize(
    ("change", "said"),
    [({"epoch": 3}, "did you mean 'epochs'"), ({"epochs": 2.5}, "epochs must be int"), ({"seed": -1}, "seed must be at least 0"),
     ({"flip": 1}, "flip must be bool"), ({"reset": "sft"}, "did you mean 'soft'"), ({"erase": 1.5}, "at most 1"),
     ({"accumulate": 999}, "batch size"), ({"frames_by": "window"}, "frame_window"), ({"event_augment": (1,)}, "event_augment")],
)  # fmt: skip
def test_wrong_changes_are_named(change, said):
    with pytest.raises(UserError, match=said):
        recipes.get("digits").but(**change)


def test_digits():
    data = sets.load("digits")
    assert (len(data.train), len(data.test), data.sample_shape, len(data.classes)) == (1438, 359, (1, 8, 8), 10)
    pixels = data.train.inputs.double() / 255
    assert data.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-4)
    assert data.std[0] == pytest.approx(float(pixels.std(correction=0)), abs=1e-4)
    assert sets.load("digits").train.fingerprint == data.train.fingerprint != data.test.fingerprint


def test_the_official_cifar10(cifar10_root):
    data = sets.load("cifar10", cifar10_root)
    assert (len(data.train), len(data.test), data.sample_shape) == (50_000, 10_000, (3, 32, 32))
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10
    assert data.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=1e-4)


def folder(base, sizes=((10, 12),), classes=("a", "b"), count=10):
    rng = np.random.default_rng(0)
    for c in classes:
        (base / c).mkdir(parents=True)
        for i in range(count):
            h, w = sizes[i % len(sizes)]
            Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(base / c / f"{i}.png")
    return base


def test_folders_of_images(tmp_path):
    whole = sets.load(str(folder(tmp_path / "one")))
    assert (len(whole.train), len(whole.test), whole.sample_shape, whole.classes) == (16, 4, (3, 10, 12), ("a", "b"))
    folder(tmp_path / "two" / "train")
    folder(tmp_path / "two" / "val", count=3)
    split = sets.load("two", tmp_path)
    assert (len(split.train), len(split.test), split.split_rule) == (20, 6, "folders")
    grey = tmp_path / "one" / "a" / "0.png"
    Image.open(grey).convert("L").save(grey)
    assert sets.load(str(tmp_path / "one")).sample_shape == (3, 10, 12)


def test_faults_of_folders_are_named(tmp_path):
    mixed = folder(tmp_path / "mixed", sizes=((10, 12), (9, 9)))
    with pytest.raises(UserError, match=r"1\.png: 9×9 pixels, others have 12×10: set --image-size"):
        sets.load(str(mixed))
    assert sets.load(str(mixed), image_size=8).sample_shape == (3, 8, 8)
    (mixed / "c").mkdir()
    with pytest.raises(UserError, match=r"mixed/c: no image"):
        sets.load(str(mixed), image_size=8)
    folder(tmp_path / "odd" / "train")
    folder(tmp_path / "odd" / "test", classes=("a", "z"))
    with pytest.raises(UserError, match="class folder 'z' is not in"):
        sets.load("odd", tmp_path)


def test_crop_and_flip_move_pixels_and_nothing_else():
    x = torch.randint(1, 256, (40, 3, 9, 7), dtype=torch.uint8)
    before = x.clone()
    y = crop_and_flip(x, 2, True)
    assert torch.equal(x, before) and y.shape == x.shape and y.is_contiguous(memory_format=torch.channels_last)
    padded = torch.nn.functional.pad(x, (2,) * 4)
    for i in range(len(x)):
        candidates = [padded[i, :, a : a + 9, b : b + 7] for a in range(5) for b in range(5)]
        assert any(torch.equal(y[i], c) or torch.equal(y[i], c.flip(-1)) for c in candidates)
    assert len({y[i].float().mean().item() for i in range(40)}) > 30


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_operations_keep_shape_and_type(name, channels):
    x = torch.randint(0, 256, (3, channels, 16, 16), dtype=torch.uint8)
    for level in (-1.0, -0.3, 0.0, 1.0):
        y = OPERATIONS[name](x.clone(), level)
        assert y.shape == x.shape and y.dtype == torch.uint8


def augment(**options):
    return ImageAugment((0.5,) * 3, (0.25,) * 3, 10, **options)


FULL = {"crop": 2, "flip": True, "randaugment": "rand-m9-mstd0.5-inc1", "erase": 0.5, "mixup": 0.5, "cutmix": 0.5}


@pytest.mark.parametrize("size", [8, 7, 1])
def test_training_batches_are_reproducible_and_their_labels_sum_to_one(size):
    x, y = torch.randint(0, 256, (size, 3, 16, 16), dtype=torch.uint8), torch.randint(0, 10, (size,))
    kept = x.clone()
    found = []
    for _ in range(2):
        seed_everything(1, 2, 3)
        found.append(augment(**FULL).train(x, y))
    assert torch.equal(x, kept)
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    weights = found[0][1]
    if size > 1:
        torch.testing.assert_close(weights.sum(-1), torch.ones(size))
    assert torch.equal(augment(**FULL).train(x, y, mix=False)[1], y)


def test_normalisation_is_the_same_for_training_and_test():
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(augment().plain(x), (x / 255 - 0.5) / 0.25)
    assert torch.equal(augment().plain(x), augment().train(x, torch.zeros(4).long())[0])


def test_randaugment_notation():
    assert RandAugment.parse("rand-m9-mstd0.5-inc1") == RandAugment(2, 9.0, 0.5)
    assert RandAugment.parse("rand-m7-n1") == RandAugment(1, 7.0, 0.0)
    with pytest.raises(UserError, match="rand-m9"):
        RandAugment.parse("rand-x3")


def loader(**options):
    data = sets.load("digits")
    prepare = ImageAugment(data.mean, data.std, 10, crop=1)
    return Loader(data, prepare, **({"batch_size": 100, "eval_batch_size": 150, "seed": 0, "device": torch.device("cpu")} | options))


def test_batches():
    ours = loader()
    assert ours.batches == 14 and loader(drop_last=False).batches == 15 and loader(limit=30).batches == 1
    epochs = [[y for _, y in ours.train(e)] for e in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(epochs[0], epochs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(epochs[0], epochs[2], strict=True))
    assert torch.equal(torch.cat([y for _, y in ours.test()]), ours.data.test.labels)
    whole = torch.cat([y for _, y in loader(drop_last=False).train(3)])
    assert torch.equal(torch.bincount(whole), torch.bincount(ours.data.train.labels))
    assert not torch.equal(next(loader(seed=1).train(0))[1], epochs[0][0])
