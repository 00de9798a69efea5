"""Sets that stream: ImageNet's folders and tar shards, what is seen of an image, and that nothing depends on who decodes it."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms_factory import transforms_imagenet_eval

from spiketrain import processes, recipes
from spiketrain.assemble import load_data, make_loader
from spiketrain.cli import main
from spiketrain.data import imagenet, sets, shards
from spiketrain.data.jpeg import decode, frame_size
from spiketrain.data.shards import TarFiles
from spiketrain.data.view import View
from spiketrain.errors import UserError
from spiketrain.recipes import Recipe
from spiketrain.record import Record

CLASSES = ("n01", "n02", "n03")


def picture(seed: int, width: int = 60, height: int = 48) -> Image.Image:
    """Smooth colours: what JPEG is made for."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Three classes with 8 training and 3 validation images, of two sizes; one is grey, one CMYK."""
    root = tmp_path_factory.mktemp("data")
    for part, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(CLASSES):
            folder = root / "imnet" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = picture(100 * label + i, *((60, 48) if i % 2 else (40, 70)))
                mode = {0: "L", 1: "CMYK"}.get(i, "RGB") if label == 0 else "RGB"
                (folder / f"{name}_{i}.JPEG").write_bytes(encoded(image.convert(mode), quality=95))
    return root


RECIPE = recipes.get("imnet-resnet18").but(
    image_size=32, width=0.0625, steps=1, epochs=2, batch_size=8, eval_batch_size=5, workers=-1, kernel="reference", precision="fp32",
    color_jitter=0.0,
)  # fmt: skip


def loader(root, recipe: Recipe = RECIPE, **changes):
    recipe = recipe.but(**changes)
    return make_loader(recipe, load_data(recipe, root), torch.device("cpu"))


def epoch(found, number: int = 0):
    return [(x.clone(), y.clone()) for x, y in found.train(number)]


def same(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(p, q) and torch.equal(r, s) for (p, r), (q, s) in zip(a, b, strict=True))


def test_the_tree(tree):
    data = load_data(RECIPE, tree)
    assert data.classes == CLASSES and (len(data.train), len(data.test)) == (24, 9) and data.sample_shape == (3, 32, 32)
    assert data.mean == (0.485, 0.456, 0.406) and data.train.inputs.numel() == 0
    assert data.test.take(torch.tensor([0, 8])).shape == (2, 3, 32, 32)


def test_an_epoch_has_every_sample_once_and_tests_too(tree):
    found = loader(tree, drop_last=False)
    assert sorted(torch.cat([y for _, y in epoch(found)]).tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    assert [x.shape[0] for x, _ in found.test()] == [5, 4]
    x, _ = epoch(found)[0]
    assert x.dtype == torch.float32 and x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("changes", [{}, {"color_jitter": 0.4}, {"randaugment": "rand-m9-mstd0.5-inc1"}], ids=str)
def test_what_is_seen_follows_from_seed_epoch_and_index_alone(tree, changes):
    here, worker = loader(tree, **changes), loader(tree, workers=1, **changes)
    first, second = epoch(here, 0), epoch(here, 1)
    assert same(first, epoch(worker, 0)) and same(second, epoch(worker, 1))
    assert same(second, epoch(loader(tree, **changes), 1))  # without the epoch before it
    assert not same(first, second) and not same(first, epoch(loader(tree, seed=1, **changes), 0))


@pytest.mark.parametrize("data", ["imnet", "imnet-shards"])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_a_batch_and_the_test_part(tree, sharded, data, world, monkeypatch):
    root = tree if data == "imnet" else sharded.parent
    one = epoch(loader(root, data=data, drop_last=False, batch_size=9), 1)
    parts, tested = [], []
    monkeypatch.setattr(processes, "world", lambda: world)
    for rank in range(world):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        found = loader(root, data=data, drop_last=False, batch_size=9)
        parts.append(epoch(found, 1))
        tested += [y for _, y in found.test()]
    assert {len(part) for part in parts} == {3}
    labels = torch.cat([y for part in parts for _, y in part])
    assert labels.bincount().tolist() == [8, 8, 8]
    if data == "imnet":  # the batches of one process, its rows shared out in order
        joined = [tuple(map(torch.cat, zip(*batch, strict=True))) for batch in zip(*parts, strict=True)]
        assert same(joined, one)
    assert torch.cat(tested).bincount().tolist() == [3, 3, 3]


def test_an_epoch_that_was_left_does_not_spill_into_the_next(tree):
    found = loader(tree, workers=1)
    next(iter(found.train(0)))
    next(iter(found.train(3)))
    assert same(epoch(found, 1), epoch(loader(tree), 1))


def test_it_trains_and_is_tested_again(tree, tmp_path):
    words = ["train", "imnet-resnet18", "--data-root", str(tree), "--quiet", *RECIPE.flags(recipes.get("imnet-resnet18"))]
    assert main([*words, "--into", str(tmp_path / "a")]) == 0
    record = Record.load(tmp_path / "a")
    assert record.data["train"] == 24 and len(record.curve) == 2
    assert main(["eval", str(tmp_path / "a"), "--data-root", str(tree)]) == 0


def test_decoding_agrees_with_pillow():
    image = picture(1)
    for mode, options in (("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})):
        data = encoded(image.convert(mode), **options)
        theirs = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
        assert np.abs(decode(data, "a").permute(1, 2, 0).numpy().astype(int) - theirs).max() <= 1
        assert frame_size(data) == (60, 48, {"RGB": 3, "L": 1, "CMYK": 4}[mode])
    png = encoded(image, "PNG")
    assert frame_size(png) is None and np.array_equal(decode(png, "a").permute(1, 2, 0).numpy(), np.asarray(image))


def test_a_tests_view_is_timms():
    image = picture(2, 301, 200)
    theirs = transforms_imagenet_eval(64, 0.875, interpolation="bicubic", normalize=False)(image)
    mine = View(64).plain(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    difference = (mine.float() - theirs.float() * (1 if theirs.max() > 1 else 255)).abs()
    assert difference.max() <= 2 and difference.mean() < 0.2


def test_a_training_view_is_a_part_scaled():
    ramp = torch.arange(100, dtype=torch.uint8).expand(3, 80, 100).contiguous(memory_format=torch.contiguous_format)
    view = View(32, area=(0.25, 0.25), aspect=(1.0, 1.0), flip=0.0, interpolation="bilinear")
    seen = [view.train(ramp, (0, 0, i)) for i in range(40)]
    widths = {int(x[0, 0, -1]) - int(x[0, 0, 0]) for x in seen}  # a square of a quarter of 8000 pixels has a side of 45
    assert widths <= set(range(42, 46)) and len({int(x[0, 0, 0]) for x in seen}) > 10
    mirrored = [bool(x[0, 0, 0] > x[0, 0, -1]) for x in (View(32, flip=0.25).train(ramp, (0, 0, i)) for i in range(400))]
    assert 70 < sum(mirrored) < 130
    assert all(bool(x[0, 0, 0] > x[0, 0, -1]) for x in (View(32, flip=1.0).train(ramp, (0, 0, i)) for i in range(20)))
    assert torch.equal(View(32, random_crop=False, flip=0.0).train(ramp, (0, 0, 0)), View(32).plain(ramp))


@pytest.mark.parametrize("kind", ["nearest", "box", "hamming", "lanczos", "bilinear", "bicubic"])
def test_every_interpolation(kind):
    grey = torch.full((3, 50, 40), 77, dtype=torch.uint8)
    view = View(24, interpolation=kind, test_interpolation=kind)
    assert torch.equal(view.train(grey, (0, 0, 0)), torch.full((3, 24, 24), 77, dtype=torch.uint8))
    assert torch.equal(view.plain(grey), torch.full((3, 24, 24), 77, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"area": (0.5,)}, "area must be two numbers"),
        ({"area": (0.9, 0.1)}, "area"),
        ({"area": (0.1, 1.5)}, "area"),
        ({"aspect": (0.0, 1.0)}, "aspect"),
        ({"interpolation": "cubic"}, "did you mean 'bicubic'"),
        ({"randaugment": "rnd-m9"}, "timm's policies"),
        ({"test_crop": 0.0}, "test_crop"),
        ({"mean": (0.5, 0.5)}, "mean has 2 values"),
    ],
    ids=str,
)
def test_wrong_fields_are_one_line(tree, changes, said):
    with pytest.raises(UserError, match=said):
        loader(tree, **changes)


def test_a_broken_image_is_one_line_that_names_it(tree, tmp_path):
    root = tmp_path / "imnet"
    for part in ("train", "val"):
        (root / part / "n01").mkdir(parents=True)
        (root / part / "n01" / "a.JPEG").write_bytes(encoded(picture(0)))
    broken = root / "train" / "n01" / "b.JPEG"
    broken.write_bytes(encoded(picture(0))[:-200])
    for workers in (-1, 1):
        with pytest.raises(UserError, match=r"b\.JPEG: not a whole image") as error:
            epoch(loader(tmp_path, batch_size=2, workers=workers))
        assert "\n" not in str(error.value)


def test_folders_that_are_not_whole(tmp_path, tree):
    with pytest.raises(UserError, match="put it there, or name its folder with --data-root"):
        load_data(RECIPE, tmp_path)
    (tmp_path / "imnet" / "train").mkdir(parents=True)
    (tmp_path / "imnet" / "val" / "n09").mkdir(parents=True)
    with pytest.raises(UserError, match="no subfolders"):
        load_data(RECIPE, tmp_path)
    (tmp_path / "imnet" / "train" / "n01").mkdir()
    with pytest.raises(UserError, match="'n09' is not in"):
        load_data(RECIPE, tmp_path)
    with pytest.raises(UserError, match="train/CLASS"):
        sets.load("imnet", tree / "imnet" / "train" / "n01", view=View(32))
    streamed = sets.load(str(tree / "imnet"), tree, stream=True, view=View(32))
    assert len(streamed.train) == 24 and streamed.name == "imnet"


@pytest.fixture(scope="module")
def sharded(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "imnet-shards"
    assert imagenet.shard(tree / "imnet", out, 4000) and main(["data", "shard", str(tree / "imnet"), str(out)]) == 2
    return out


def test_shards_hold_what_the_folder_does(tree, sharded):
    folder, packed = load_data(RECIPE, tree), load_data(RECIPE.but(data=str(sharded)), sharded.parent)
    assert len(list(sharded.glob("train-*.tar"))) > 3
    assert (packed.classes, packed.train.fingerprint, packed.test.fingerprint) == (
        folder.classes, folder.train.fingerprint, folder.test.fingerprint
    )  # fmt: skip
    for part in ("train", "test"):
        contents = [
            sorted((int(label), split.stream.files.read(i)) for i, label in enumerate(split.labels))
            for split in (getattr(folder, part), getattr(packed, part))
        ]
        assert contents[0] == contents[1]
    assert load_data(RECIPE.but(data="imnet-shards"), sharded.parent).name == "imnet-shards"


def test_shards_train_every_sample_once_and_alike(sharded):
    found = loader(sharded.parent, data="imnet-shards", drop_last=False)
    assert sorted(torch.cat([y for _, y in epoch(found)]).tolist()) == [0] * 8 + [1] * 8 + [2] * 8
    assert same(epoch(found, 1), epoch(loader(sharded.parent, data="imnet-shards", drop_last=False, workers=1), 1))
    assert not same(epoch(found, 0), epoch(found, 1))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shards_are_read_a_few_at_a_time_and_each_rank_has_its_own(world):
    entries = np.zeros(64 * 50, shards.ENTRY)
    entries["shard"] = np.arange(64 * 50) // 50
    files = TarFiles(tuple(map(str, range(64))), entries)
    generator = torch.Generator().manual_seed(0)
    order = files.arrange(torch.randperm(3200, generator=generator), generator, 40, world)
    assert sorted(order.tolist()) == list(range(3200))
    mine = order.view(-1, world, 40 // world)  # [batches, rank, its slice]
    of_rank = [torch.unique(mine[:, r] // 50) for r in range(world)]
    assert sum(map(len, of_rank)) <= 64 + 16 * (world - 1)  # a group at each edge may be shared
    for r in range(world):
        near = (mine[:, r] // 50).reshape(-1).unfold(0, 100, 100)
        assert max(len(torch.unique(part)) for part in near) <= 32  # of two groups of 16


def test_an_index_is_kept_and_a_false_one_is_not_believed(sharded, tmp_path, monkeypatch):
    monkeypatch.setenv("SPIKETRAIN_CACHE", str(tmp_path))
    first = load_data(RECIPE.but(data=str(sharded)), None)
    kept = sorted(tmp_path.glob("shards-*.npy"))
    assert len(kept) == 2
    monkeypatch.setattr(shards, "read_index", lambda *_: pytest.fail("the kept index is to be used"))
    assert load_data(RECIPE.but(data=str(sharded)), None).train.fingerprint == first.train.fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("SPIKETRAIN_CACHE", str(tmp_path))
    for file in kept:
        false = np.load(file)
        false["offset"] = 10**12
        np.save(file, false)
    assert load_data(RECIPE.but(data=str(sharded)), None).train.fingerprint == first.train.fingerprint


def archive(file, members, kind=tarfile.USTAR_FORMAT):
    with tarfile.open(file, "w", format=kind) as made:
        for name, content in members:
            header = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            header.size = len(content)
            made.addfile(header, io.BytesIO(content))


def link(kind: bytes) -> tarfile.TarInfo:
    header = tarfile.TarInfo("a.jpg")
    header.type, header.linkname = kind, "/etc/passwd"
    return header


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], "no image with a label"),
        ([("a.jpg", b"x")], "no label"),
        ([("a.cls", b"1")], "no image"),
        ([("a.jpg", b"x"), ("a.cls", b"one")], "holds no label"),
        ([("a.jpg", b"x"), ("a.cls", b"-1")], "holds no label"),
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"1")], "two of image"),
        ([(link(tarfile.SYMTYPE), b"")], "is a link, a device"),
        ([(link(tarfile.LNKTYPE), b"")], "is a link, a device"),
        ([(link(tarfile.CHRTYPE), b"")], "is a link, a device"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_shards_of_others_are_refused(tmp_path, members, said):
    archive(tmp_path / "train-0.tar", members)
    with pytest.raises(UserError, match=said) as error:
        shards.read_index(tmp_path / "train-0.tar", 0)
    assert "\n" not in str(error.value) and "train-0.tar" in str(error.value)


def test_names_in_shards_lead_nowhere(tmp_path):
    members = [("../../b.jpg", b"x"), ("../../b.cls", b"0"), ("/etc/c.jpg", b"yy"), ("/etc/c.cls", b"3")]
    archive(tmp_path / "a.tar", members, tarfile.PAX_FORMAT)
    index = shards.read_index(tmp_path / "a.tar", 0)
    assert index["label"].tolist() == [0, 3] and index["size"].tolist() == [1, 2]
    assert set(tmp_path.iterdir()) == {tmp_path / "a.tar"} and not (tmp_path.parent.parent / "b.jpg").exists()
