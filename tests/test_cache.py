"""The frame cache: right, keyed by all that matters, resumable after kill -9, safe with two builders at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from spiketrain.data import cache, parallel
from spiketrain.data.cache import cache_root, cached
from spiketrain.data.events import to_frames
from spiketrain.data.framing import Framing, Source
from spiketrain.data.readers import read
from spiketrain.data.readers.write import write_bin
from spiketrain.data.types import EVENT, Recording
from spiketrain.errors import UserError

SENSOR = (20, 16)
FRAMING = Framing(steps=4, size=8, sensor=SENSOR)


def recording(seed, n=200):
    rng = np.random.default_rng(seed)
    events = np.zeros(n, EVENT)
    events["t"] = np.sort(rng.integers(0, 90_000, n))
    events["x"], events["y"] = rng.integers(0, SENSOR[0], n), rng.integers(0, SENSOR[1], n)
    events["p"] = rng.integers(0, 2, n)
    return Recording(events, SENSOR)


def sources(folder, count=10):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        if not (folder / f"{i:03d}.bin").exists():
            write_bin(folder / f"{i:03d}.bin", recording(i))
    return [Source(folder / f"{i:03d}.bin", f"a/{i:03d}.bin", i % 3) for i in range(count)]


def expected(files, framing=FRAMING):
    return np.stack([to_frames(read(f.path).events, framing.steps, SENSOR, out_size=8) for f in files])


def folders(where):
    return sorted(f for f in where.iterdir() if f.is_dir())


def counting(monkeypatch):
    """Counts how many files are framed from here on."""
    calls = []
    real = cache.samples_of
    monkeypatch.setattr(cache, "samples_of", lambda *a: calls.append(a[0].name) or real(*a))
    return calls


def test_frames_are_those_of_to_frames_and_are_made_once(tmp_path, monkeypatch):
    files = sources(tmp_path / "raw")
    calls = counting(monkeypatch)
    split = cached(files, FRAMING, tmp_path / "cache", "x", "all")
    assert split.inputs.dtype == torch.uint8 and split.inputs.shape == (10, 4, 2, 8, 8) and split.framed
    assert np.array_equal(split.inputs.numpy(), expected(files))
    assert split.labels.tolist() == [i % 3 for i in range(10)]
    again = cached(files, FRAMING, tmp_path / "cache", "x", "all")
    assert len(calls) == 10 and again.fingerprint == split.fingerprint
    assert [f.suffix for f in folders(tmp_path / "cache")] == [""]  # no .part is left


def test_what_changes_the_key(tmp_path, monkeypatch):
    files, where = sources(tmp_path / "raw"), tmp_path / "cache"
    calls = counting(monkeypatch)
    cached(files, FRAMING, where, "x", "all")
    variants = [
        (files, Framing(steps=5, size=8, sensor=SENSOR), "all"),
        (files, Framing(steps=4, size=8, sensor=SENSOR, by="count"), "all"),
        (files, Framing(steps=4, size=8, sensor=SENSOR, resize="bilinear"), "all"),
        (files, FRAMING, "other split"),
        (files[:9], FRAMING, "all"),
        (files[::-1], FRAMING, "all"),
        ([Source(f.path, f.name, 0) for f in files], FRAMING, "all"),
    ]
    for variant in variants:
        before = len(calls)
        cached(variant[0], variant[1], where, "x", variant[2])
        assert len(calls) > before
    assert len(folders(where)) == 1 + len(variants)


def test_a_changed_file_is_never_served_stale(tmp_path):
    files, where = sources(tmp_path / "raw"), tmp_path / "cache"
    first = cached(files, FRAMING, where, "x", "all")
    write_bin(files[3].path, recording(99))
    second = cached(files, FRAMING, where, "x", "all")
    assert np.array_equal(second.inputs.numpy(), expected(files))
    assert not torch.equal(first.inputs[3], second.inputs[3]) and first.fingerprint != second.fingerprint


def test_fingerprint_is_of_content_not_of_place_or_time(tmp_path):
    a = cached(sources(tmp_path / "a"), FRAMING, tmp_path / "ca", "x", "all")
    files = sources(tmp_path / "b")
    for f in files:
        os.utime(f.path, (1, 1))
    b = cached(files, FRAMING, tmp_path / "cb", "y", "all")
    assert a.fingerprint == b.fingerprint


def test_frames_cannot_be_changed_through_the_tensor(tmp_path):
    files, where = sources(tmp_path / "raw"), tmp_path / "cache"
    cached(files, FRAMING, where, "x", "all").inputs.fill_(7)
    assert np.array_equal(cached(files, FRAMING, where, "x", "all").inputs.numpy(), expected(files))


def test_a_damaged_cache_is_built_again(tmp_path):
    files, where = sources(tmp_path / "raw"), tmp_path / "cache"
    cached(files, FRAMING, where, "x", "all")
    (folder,) = folders(where)
    for damage in ("frames.npy", "manifest.json"):
        os.truncate(folder / damage, 20)
        split = cached(files, FRAMING, where, "x", "all")
        assert np.array_equal(split.inputs.numpy(), expected(files))


def test_counts_above_255_widen_the_whole_array(tmp_path):
    files = sources(tmp_path / "raw", 3)
    events = np.zeros(301, EVENT)
    events["t"][-1] = 10_000
    write_bin(files[1].path, Recording(events, SENSOR))
    split = cached(files, FRAMING, tmp_path / "cache", "x", "all")
    assert split.inputs.dtype == torch.int16 and split.inputs[1].max() == 300
    assert np.array_equal(split.inputs.numpy(), expected(files))


def test_one_file_with_several_samples(tmp_path):
    (file,) = sources(tmp_path / "raw", 1)
    spans = ((2, 10_000, 40_000), (1, 40_000, 90_000))
    split = cached([Source(file.path, "a", 0, spans)], FRAMING, tmp_path / "cache", "x", "all")
    assert split.labels.tolist() == [2, 1]
    events = read(file.path).events
    late = events[events["t"] >= 40_000]
    assert np.array_equal(split.inputs[1].numpy(), to_frames(late, 4, SENSOR, out_size=8))
    cuts = cached([file], Framing(steps=2, size=8, sensor=SENSOR, cut=20_000), tmp_path / "cache", "x", "all")
    assert len(cuts) == 4 and cuts.labels.tolist() == [0] * 4


def test_errors_name_the_file(tmp_path):
    files = sources(tmp_path / "raw")
    files[4].path.write_bytes(b"abcdefg")
    with pytest.raises(UserError, match=r"004\.bin"):
        cached(files, FRAMING, tmp_path / "cache", "x", "all")
    write_bin(files[4].path, recording(4))
    assert len(cached(files, FRAMING, tmp_path / "cache", "x", "all")) == 10  # what was made is used, nothing is stuck
    with pytest.raises(UserError, match=r"007\.bin.*outside a sensor"):
        cached(files[7:], Framing(steps=4, size=8, sensor=(10, 16)), tmp_path / "cache", "x", "all")
    files[2].path.unlink()
    with pytest.raises(UserError, match=r"002\.bin: cannot be read"):
        cached(files, FRAMING, tmp_path / "cache", "x", "all")


def test_recordings_of_several_sizes_need_a_size(tmp_path, monkeypatch):
    files = sources(tmp_path / "raw", 2)
    events = recording(0).events
    write_bin(files[1].path, Recording(events[events["x"] < 9], None))
    for shard in (64, 1):
        monkeypatch.setattr(cache, "SHARD_FILES", shard)
        with pytest.raises(UserError, match="give all frames one"):
            cached(files, Framing(steps=2, size=None), tmp_path / f"cache{shard}", "x", "all")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="SPIKETRAIN_CACHE"):
        cached(sources(tmp_path / "raw", 1), FRAMING, tmp_path / "file", "x", "all")


def test_where_caches_go(tmp_path, monkeypatch):
    monkeypatch.delenv("SPIKETRAIN_CACHE", raising=False)
    assert cache_root(tmp_path) == tmp_path / ".spiketrain-cache"
    monkeypatch.setenv("SPIKETRAIN_CACHE", "/elsewhere")
    assert cache_root(tmp_path) == Path("/elsewhere") and cache_root(tmp_path, "here") == Path("here")


def test_shards_are_bounded_and_keep_the_order(tmp_path, monkeypatch):
    files = sources(tmp_path / "raw")
    monkeypatch.setattr(cache, "SHARD_BYTES", 2500)  # a file has 1,000 bytes
    assert [len(s) for s in cache._shards(files)] == [2, 2, 2, 2, 2]
    monkeypatch.setattr(cache, "SHARD_BYTES", 10)
    assert [s for shard in cache._shards(files) for s in shard] == files
    monkeypatch.setattr(cache, "SHARD_FILES", 3)
    monkeypatch.setattr(cache, "SHARD_BYTES", 1 << 20)
    assert [len(s) for s in cache._shards(files)] == [3, 3, 3, 1]


BUILDER = """
import sys, time
from pathlib import Path
from spiketrain.data import cache, parallel
from spiketrain.data.framing import Framing, Source

def slow(source, framing, real=cache.samples_of):
    time.sleep(float(sys.argv[4]))
    with open(sys.argv[3], "a") as log:
        log.write(source.name + chr(10))
    return real(source, framing)

def main():
    cache.SHARD_FILES = 2
    cache.samples_of = slow
    raw, where = Path(sys.argv[1]), Path(sys.argv[2])
    files = [Source(f, f"a/{f.name}", int(f.stem) % 3) for f in sorted(raw.iterdir())]
    split = cache.cached(files, Framing(steps=4, size=8, sensor=(20, 16)), where, "x", "all", workers=1)
    print(len(split), split.fingerprint)

if __name__ == "__main__":
    main()
"""


def builder(tmp_path, log, delay):
    script = tmp_path / "builder.py"
    script.write_text(BUILDER)
    command = [sys.executable, str(script), str(tmp_path / "raw"), str(tmp_path / "cache"), str(log), str(delay)]
    path = os.pathsep.join([str(Path(cache.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def lines(log):
    return log.read_text().split() if log.exists() else []


def test_killed_in_the_middle_the_next_start_goes_on(tmp_path, monkeypatch):
    files, log = sources(tmp_path / "raw", 12), tmp_path / "log"
    process = builder(tmp_path, log, 0.2)
    wait_for(lambda: len(lines(log)) >= 5)  # two whole shards, and one begun
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (part,) = folders(tmp_path / "cache")
    whole = sorted(part.glob("*.npz"))
    assert part.suffix == ".part" and 2 <= len(whole) < 6
    (part / "shard-00005.123.tmp").write_bytes(b"half a shard")
    os.truncate(whole[0], 100)  # what a crash of the machine may leave
    monkeypatch.setattr(cache, "SHARD_FILES", 2)
    calls = counting(monkeypatch)
    split = cached(files, FRAMING, tmp_path / "cache", "x", "all")
    assert len(calls) == 12 - 2 * (len(whole) - 1)  # only what was missing
    assert np.array_equal(split.inputs.numpy(), expected(files))
    assert len(folders(tmp_path / "cache")) == 1


@pytest.mark.parametrize("moment", ["before the rename", "after the rename"])
def test_killed_at_the_end(tmp_path, monkeypatch, moment):
    files, where = sources(tmp_path / "raw"), tmp_path / "cache"

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache.os if moment == "before the rename" else cache.shutil, *KILLED[moment], killed)
        cached(files, FRAMING, where, "x", "all")
    split = cached(files, FRAMING, where, "x", "all")
    assert np.array_equal(split.inputs.numpy(), expected(files))
    assert [f.suffix for f in folders(where)] == [""]


KILLED = {"before the rename": ("rename",), "after the rename": ("rmtree",)}


def test_two_builders_at_once(tmp_path):
    files, log = sources(tmp_path / "raw", 12), tmp_path / "log"
    both = [builder(tmp_path, log, 0.15) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in both]
    assert [p.returncode for p in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert sorted(lines(log)) == [f.name for f in files]  # each file framed once, by one of the two
    assert any("waiting" in err for _, err in answers)
    split = cached(files, FRAMING, tmp_path / "cache", "x", "all")
    assert np.array_equal(split.inputs.numpy(), expected(files))


POOL = """
import os, sys, time
from pathlib import Path
from spiketrain.data import parallel

def job(folder, i):
    Path(folder, f"{i}.{os.getpid()}").write_text("")
    time.sleep(float(sys.argv[2]))
    if i == int(sys.argv[3]):
        raise ValueError("job 5 failed")

def main():
    parallel.POOL_AFTER = parallel.POOL_FOR = 0
    done = sorted(parallel.run(job, [(sys.argv[1], i) for i in range(6)], 2))
    print(done)

GUARD
    main()
"""


def pool(tmp_path, delay, failing=-1, guard='if __name__ == "__main__":'):
    script, out = tmp_path / "pool.py", tmp_path / "out"
    script.write_text(POOL.replace("GUARD", guard))
    out.mkdir()
    path = os.pathsep.join([str(Path(cache.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, str(script), str(out), str(delay), str(failing)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, out


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_pool_does_every_job_once_on_several_processes(tmp_path):
    process, out = pool(tmp_path, 0.3)
    stdout, stderr = process.communicate(timeout=120)
    assert stdout.strip() == str(list(range(6))), stderr
    names = [f.name.split(".") for f in out.iterdir()]
    assert sorted(i for i, _ in names) == [str(i) for i in range(6)]
    assert len({pid for _, pid in names}) == 3  # this one first, then two more


def test_pool_raises_a_jobs_error(tmp_path):
    process, _ = pool(tmp_path, 0, failing=5)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1 and "job 5 failed" in stderr


def test_a_script_without_guard_is_told_and_goes_on(tmp_path):
    process, _ = pool(tmp_path, 0, guard="if True:")
    stdout, stderr = process.communicate(timeout=120)
    assert stdout.strip() == str(list(range(6))), stderr
    assert "one core does it all" in stderr and 'under `if __name__ == "__main__":`' in stderr


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_leave_with_a_killed_parent(tmp_path):
    process, out = pool(tmp_path, 1.5)
    wait_for(lambda: len({f.name.split(".")[1] for f in out.iterdir()}) == 3)
    workers = {int(f.name.split(".")[1]) for f in out.iterdir()} - {process.pid}
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not any(alive(pid) for pid in workers), 5)


def test_serial_when_short_or_with_one_worker(monkeypatch):
    monkeypatch.setattr(parallel, "_pooled", None)
    done = []
    assert list(parallel.run(done.append, [(i,) for i in range(5)], 4)) == list(range(5)) and done == list(range(5))
    monkeypatch.setattr(parallel, "POOL_AFTER", 0)
    monkeypatch.setattr(parallel, "POOL_FOR", 0)
    assert list(parallel.run(done.append, [(1,)], 1)) == [0]
    assert list(parallel.run(done.append, [], 4)) == []


def test_manifest_tells_what_it_is(tmp_path):
    cached(sources(tmp_path / "raw"), FRAMING, tmp_path / "cache", "x", "all")
    (folder,) = folders(tmp_path / "cache")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["shape"] == [10, 4, 2, 8, 8] and manifest["dtype"] == "uint8" and manifest["framing"]["steps"] == 4
