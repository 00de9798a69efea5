"""Real files against an independent decoder's counts, what is written against what is read, and damaged files."""

import json
import tarfile

import h5py
import numpy as np
import pytest
import scipy.io

from spiketrain.data.readers import read, write
from spiketrain.data.types import EVENT, Recording
from spiketrain.errors import UserError

DVS128 = {
    "DataSet2": (201_523, 351_217, 307_531, 314_257, 126_164, 293_096, 143_655),
    "NeuromorphicObjectDataSet_100": (374_039, 518_133, 494_435, 413_436, 408_860, 249_545, 263_941),
}


@pytest.fixture
def formats(shared_data):
    return shared_data / "formats"


def test_every_real_sample_reads_to_the_independent_count(formats):
    expected = json.loads((formats / "expected.json").read_text())
    seen = 0
    for name, facts in expected.items():
        events = read(formats / name).events
        assert len(events) == facts["n"], name
        if not facts["n"]:
            continue
        order = facts["columns"].split(",")
        for index, row in [*enumerate(facts["first"]), (-1, facts["last"])]:
            assert [int(events[index][c]) for c in order] == row, name
        sums = {f"sum_{c}": int(events[c].astype(np.int64).sum()) for c in order}
        assert sums.items() >= {k: v for k, v in facts.items() if k in sums}.items()
        seen += 1
    assert seen >= 4


def test_real_recordings_of_a_dvs128(shared_data, tmp_path):
    with tarfile.open(shared_data / "dvs128_objects" / "aedat2_raw.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    for folder, counts in DVS128.items():
        files = sorted(tmp_path.rglob(f"{folder}/**/*.aedat"))
        assert sorted(len(read(f)) for f in files) == sorted(counts)


def recording(n=1000, width=100, height=90, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT)
    events["t"] = np.cumsum(rng.integers(0, longest, n))
    events["x"], events["y"], events["p"] = rng.integers(0, width, n), rng.integers(0, height, n), rng.integers(0, 2, n)
    return Recording(events, (width, height))


def write_npy(path, made):
    e = made.events
    np.save(path, np.stack([e["x"], e["y"], e["p"], e["t"] // 1000], 1).astype(np.int64))


def write_npz(path, made):
    np.savez(path, **{n: made.events[n] for n in "txyp"})


def write_mat(path, made):
    e = made.events
    scipy.io.savemat(path, {"ts": e["t"][:, None], "x": e["x"][:, None], "y": e["y"][:, None], "pol": e["p"][:, None]})


def write_h5(path, made):
    with h5py.File(path, "w") as file:
        for name in "txyp":
            file.create_dataset(f"events/{name}", data=made.events[name])


WRITERS = {
    "bin": write.write_bin, "dat": write.write_dat, "aedat": write.write_aedat2, "aedat4": write.write_aedat4, "npy": write_npy,
    "npz": write_npz, "mat": write_mat, "h5": write_h5,
}  # fmt: skip


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("n", [0, 1, 5000])
def test_what_is_written_is_read(ending, n, tmp_path):
    made = recording(n)
    if ending == "npy":
        made.events["t"] -= made.events["t"] % 1000
    file = tmp_path / f"a.{ending}"
    WRITERS[ending](file, made)
    if n == 0 and ending == "bin":
        with pytest.raises(UserError, match="empty"):
            read(file)
        return
    assert np.array_equal(read(file).events, made.events)


def test_long_recordings_keep_their_time_in_the_format_of_nmnist(tmp_path):
    made = recording(3000, longest=20_000)
    assert made.events["t"][-1] > 1 << 23
    write.write_bin(tmp_path / "a.bin", made)
    assert np.array_equal(read(tmp_path / "a.bin").events, made.events)


def evt3(*words):
    return b"% evt 3.0\n% geometry 1280x720\n% end\n" + np.array(words, "<u2").tobytes()


def test_evt3_word_by_word(tmp_path):
    file = tmp_path / "a.raw"
    file.write_bytes(
        evt3(
            0x2005,  # before any time: skipped
            0x8001, 0x6002, 0x0007, 0x2805,  # t = 4098, y = 7: x = 5 ON
            0x3064, 0x4801, 0x5081,  # base 100 OFF: bits 0 and 11 of twelve, then bits 0 and 7 of eight from 112 on
            0x8002, 0x2006,  # high time alone sets the low bits to zero
        )
    )  # fmt: skip
    found = read(file)
    assert found.size == (1280, 720)
    vector = [(4098, x, 7, 0) for x in (100, 111, 112, 119)]
    assert found.events.tolist() == [(4098, 5, 7, 1), *vector, (8192, 6, 7, 0)]


def decode_word_by_word(words):
    """EVT 3.0 as its description reads, a word at a time."""
    y = high = base = None
    low = 0
    found = []
    for word in words:
        kind, rest = word >> 12, word & 0xFFF
        if kind == 0:
            y = rest & 0x7FF
        elif kind == 6:
            low = rest
        elif kind == 8:
            high, low = rest, 0
        elif kind == 3:
            base, polarity = rest & 0x7FF, rest >> 11
        started = y is not None and high is not None
        if kind == 2 and started:
            found.append((high * 4096 + low, rest & 0x7FF, y, rest >> 11))
        if kind in (4, 5) and base is not None:
            width = 12 if kind == 4 else 8
            if started:
                found += [(high * 4096 + low, base + i, y, polarity) for i in range(width) if rest >> i & 1]
            base += width
    return found


@pytest.mark.parametrize("block", [3, 7, 64, 1 << 15])
@pytest.mark.parametrize("vectors", [False, True])
def test_evt3_in_blocks_is_evt3_word_by_word(block, vectors, tmp_path, monkeypatch):
    monkeypatch.setattr("spiketrain.data.readers.evt3.BLOCK", block)
    rng = np.random.default_rng(block + vectors)
    kinds = rng.choice([0, 2, 6, 3, 4, 5, 8, 0xE] if vectors else [0, 2, 2, 6, 8], 2000)
    words = kinds << 12 | rng.integers(0, 1 << 12, 2000)
    times = np.flatnonzero(kinds == 8)
    words[times] = 8 << 12 | np.arange(len(times))  # time does not go back
    words[kinds == 3] &= ~0x600  # bases far enough to the left for a few vectors
    lows = kinds == 6
    words[lows] = 6 << 12 | np.sort(rng.integers(0, 1 << 12, lows.sum()))
    expected = decode_word_by_word(words.tolist())
    inside = all(x < 2048 + 12 for _, x, _, _ in expected)
    file = tmp_path / "a.raw"
    file.write_bytes(b"% evt 3.0\n% end\n" + words.astype("<u2").tobytes())
    assert inside and len(expected) > 100
    assert read(file).events.tolist() == expected


def packet31(t, x, y, p, event_type=1, size=8):
    n = len(t)
    head = np.array([event_type, 0], "<u2").tobytes() + np.array([size, 4, 0, n, n, n], "<u4").tobytes()
    data = np.empty((n, 2), "<u4")
    data[:, 0], data[:, 1] = (x << 17) | (y << 2) | (p << 1) | 1, t
    return head + data.tobytes()


def test_aedat31_packets(tmp_path):
    made = recording(100).events
    columns = [made[c].astype(np.uint32) for c in "txyp"]
    file = tmp_path / "a.aedat"
    head = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
    special = packet31(*(c[:3] for c in columns), event_type=0)
    file.write_bytes(head + packet31(*(c[:60] for c in columns)) + special + packet31(*(c[60:] for c in columns)))
    assert np.array_equal(read(file).events, made)


@pytest.mark.parametrize("ending", [e for e in WRITERS if e != "bin"])
def test_damaged_files_are_one_line_with_file_and_byte(ending, tmp_path):
    file = tmp_path / f"a.{ending}"
    WRITERS[ending](file, recording(500))
    whole = file.read_bytes()
    for wrong in (b"", b"\x00" * 100, b"\xff" * 1001, b"hello world, this is no recording", whole[: len(whole) // 2 + 3], whole[:11]):
        file.write_bytes(wrong)
        with pytest.raises(UserError, match=rf"{file}: byte \d+: ") as caught:
            read(file)
        assert "\n" not in str(caught.value)


def test_what_cannot_be_a_recording(tmp_path):
    for name, said in (("a.txt", "no known format"), ("absent.bin", "cannot be read"), (".", "no known format")):
        with pytest.raises(UserError, match=said):
            read(tmp_path / name)
    (tmp_path / "folder.bin").mkdir()
    with pytest.raises(UserError, match="not a regular file"):
        read(tmp_path / "folder.bin")
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be opened"):
        read(tmp_path / "evil.npy")
    write.write_bin(tmp_path / "wide.bin", recording(width=200))
    with pytest.raises(UserError, match="x is"):
        read(tmp_path / "wide.bin", (34, 34))
