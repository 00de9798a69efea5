"""Several processes that train one network: equal to one process, in losses, batches, evaluation and bits; who speaks and who writes."""

import json
import os
import runpy
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import ROOT
from safetensors.torch import load_file

import spiketrain as st
from spiketrain import assemble, functional, processes, sync
from spiketrain.cli import main
from spiketrain.data.types import DataSet, Split
from spiketrain.errors import UserError
from spiketrain.record import Record

TINY = ["--limit", "256", "--hardest", "0.6", "--width", "0.25", "--batch-size", "32", "--epochs", "2", "--device", "cpu", "--quiet"]


def torchrun(*words: str, count: int = 2, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), *words]
    whole = os.environ | {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=ROOT, env=whole, capture_output=True, text=True, timeout=120, check=False)


def test_two_processes_have_the_losses_of_one(monkeypatch):
    """Norms, erasing, mixing, parts of batches, a batch that does not divide: in float64, all but the loss, which is float32."""
    recipe = {"neuron": "plif", "learn_alpha": True, "optimizer": "muon", "lr": 0.02, "erase": 0.1, "mixup": 0.2, "crop": 1}
    recipe |= {"accumulate": 3, "batch_size": 31, "width": 0.25, "warmup_epochs": 0.0}
    job = {"recipe": recipe, "steps": 20, "wide": True}
    done = torchrun("benchmarks/processes.py", "--worker", json.dumps(job))
    assert done.returncode == 0, done.stderr
    two = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))["losses"]
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    one = runpy.run_path(str(ROOT / "benchmarks" / "processes.py"))["work"](job)["losses"]
    assert max(abs(a - b) for a, b in zip(one, two, strict=True)) < 1e-5
    assert sum(one[-5:]) < 0.99 * sum(one[:5])


@pytest.mark.parametrize("world", [2, 3, 7])
@pytest.mark.parametrize(("total", "parts"), [(64, 1), (65, 1), (64, 3), (29, 4)])
def test_every_row_of_every_part_belongs_to_one_process(world, total, parts):
    size = -(-total // parts)
    shares = [processes.rows(total, parts, rank, world) for rank in range(world)]
    for k, part in enumerate(range(0, total, size)):
        mine = [i for share in shares for i in range(share[k].start, share[k].stop)]
        assert mine == list(range(part, min(part + size, total)))
        lengths = [share[k].stop - share[k].start for share in shares]
        assert max(lengths) - min(lengths) <= 1


def recordings() -> DataSet:
    """Frames of events, of 80 recordings and 45, in three classes."""
    parts = [Split(torch.randint(0, 5, (n, 4, 2, 12, 12), dtype=torch.uint8), torch.arange(n) % 3, "") for n in (80, 45)]
    return DataSet("recordings", parts[0], parts[1], ("a", "b", "c"))


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"crop": 2, "flip": True}, {"crop": 1, "randaugment": "rand-m5-mstd0.5"}, {"erase": 0.5, "mixup": 0.2, "cutmix": 0.3},
        {"event_augment": ("crop-flip-rotate", "event-drop", "mixup")},
    ],
    ids=["plain", "crop", "randaugment", "mixed", "events"],
)  # fmt: skip
def test_the_rows_of_all_processes_make_the_batches_of_one(changes, monkeypatch):
    base = st.recipes.get("digits").but(batch_size=30, accumulate=2, limit=75, drop_last=False, crop=0, eval_batch_size=20)
    recipe = base.but(**changes)
    data = recordings() if changes.get("event_augment") else assemble.load_data(recipe, None)

    def batches(rank: int, world: int) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[tuple[torch.Tensor, torch.Tensor]]]:
        monkeypatch.setattr(processes, "world", lambda: world)
        monkeypatch.setattr(processes, "rank", lambda: rank)
        loader = assemble.make_loader(recipe, data, torch.device("cpu"))
        return list(loader.train(1)), list(loader.test())

    (whole, tests), shares = batches(0, 1), [batches(rank, 3) for rank in range(3)]
    axis = 1 if data.train.framed else 0
    for i, (inputs, labels) in enumerate(whole):
        size = -(-len(labels) // 2)
        starts = [[p.stop - p.start for p in processes.rows(len(labels), 2, rank, 3)] for rank in range(3)]
        parts = [[share[0][i][k].split(starts[r], axis if k == 0 else 0) for r, share in enumerate(shares)] for k in (0, 1)]
        for k, expected, dim in ((0, inputs, axis), (1, labels, 0)):
            found = torch.cat([parts[k][r][p] for p in (0, 1) for r in range(3)], dim)
            assert torch.equal(found, expected), (i, k, size)
    found = sorted(x.sum().item() for share in shares for inputs, _ in share[1] for x in inputs.unbind(axis))
    assert found == pytest.approx(sorted(x.sum().item() for inputs, _ in tests for x in inputs.unbind(axis)), rel=1e-5)
    assert sum(len(labels) for share in shares for _, labels in share[1]) == len(data.test)


def test_a_batch_too_small_for_the_processes_is_one_line(monkeypatch):
    monkeypatch.setattr(processes, "world", lambda: 8)
    recipe = st.recipes.get("digits").but(batch_size=64, limit=70, drop_last=False)
    with pytest.raises(UserError, match="a batch of 6 samples in 1 parts for 8 processes"):
        assemble.make_loader(recipe, assemble.load_data(recipe, None), torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_synchronised_norm_of_one_process_is_torchs(dtype, layout):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = (torch.randn(6, 5, 4, 3, dtype=torch.float64) * 2 + 3).to(dtype).contiguous(memory_format=layout)
    weight, bias, dy = torch.rand(5, dtype=wide) + 0.5, torch.randn(5, dtype=wide), torch.randn_like(x)
    found = []
    for ours in (False, True):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        running = torch.zeros(5, dtype=wide), torch.ones(5, dtype=wide)
        if ours:
            y = sync.batch_norm(leaves[0], running, leaves[1], leaves[2], 0.1, 1e-5)
        else:
            y = F.batch_norm(leaves[0], *running, leaves[1], leaves[2], True, 0.1, 1e-5)
        found.append((y, *torch.autograd.grad(y, leaves, dy), *running))
    assert found[1][0].is_contiguous(memory_format=layout) and found[1][1].is_contiguous(memory_format=layout)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_moments_are_those_of_all_values_and_pass_gradients():
    """Two unequal parts; `sent` stands for what the other process adds."""
    whole = torch.randn(50, 3, dtype=torch.float64) + 100
    parts = [whole[:20], whole[20:]]

    def found(x, sent):
        mine = functional.Moments(x.mean(0)[None], x.var(0, correction=0)[None], len(x))
        return functional.together(mine, lambda sums: sums + sent)

    sums = []
    for x in parts:
        functional.together(functional.Moments(x.mean(0)[None], x.var(0, correction=0)[None], len(x)), lambda t: sums.append(t) or t)
    for x, other in zip(parts, sums[::-1], strict=True):
        shared = found(x, other)
        torch.testing.assert_close(shared.mean[0], whole.mean(0))
        torch.testing.assert_close(shared.var[0], whole.var(0, correction=0))
        assert shared.count == 50
    leaf = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: (found(v, sums[0]).mean, found(v, sums[0]).var), leaf)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two") / "run"
    done = torchrun("-m", "spiketrain", "train", "digits", *TINY, "--into", str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test accuracy") == 1
    return folder


def test_a_run_of_two_processes_is_whole(run):
    """One record, by process 0; every test sample counted once."""
    record = Record.load(run)
    assert record.machine["processes"] == 2 and sum(map(sum, record.confusion)) == 359 and len(record.curve) == 2
    assert sorted(p.name for p in run.iterdir()) == ["checkpoint-00002", "curve.png", "record.json", "weights.safetensors"]
    assert main(["eval", str(run), "--device", "cpu"]) == 0


def test_a_mistake_in_all_processes_is_said_once(tmp_path, monkeypatch, capsys):
    words = ("--dataset", "cifar10", "--model", "cifar_convnet", "--data-root", str(tmp_path))
    done = torchrun("examples/img_cls/bp/main.py", *words)
    assert sum(line.startswith("main.py: ") for line in done.stderr.splitlines()) == 1
    assert "exitcode  : 2" in done.stderr and "exitcode  : 1" not in done.stderr
    for rank, lines in (("0", 1), ("1", 0)):  # before the processes know each other
        monkeypatch.setenv("RANK", rank)
        assert main(["train", "digitz"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_processes_that_start_again_do_not_find_those_that_died(monkeypatch):
    """torchrun keeps one store: in it lie the name that a process of the last start asked with, and where it listened."""
    kept = dist.HashStore()
    rank = threading.local()
    monkeypatch.setattr(processes, "rendezvous", lambda *words, **named: iter([(kept, rank.number, 3)]))

    def start(number: int, late: float, turn: bytes) -> list[int]:
        rank.number = number
        time.sleep(late)
        store, me, count = processes._own_store(20.0)
        assert (me, count) == (number, 3)
        store.set(f"address {number}", turn)
        return [i for i in range(3) if store.get(f"address {i}") != turn]

    for turn, late in ((b"first", 0.0), (b"second", 0.05), (b"third", -0.05)):
        with ThreadPoolExecutor(3) as pool:
            found = [pool.submit(start, i, 0.1 + (i - 1) * late, turn) for i in range(3)]
            assert [dead.result() for dead in found] == [[], [], []]


def test_a_killed_process_is_restarted_with_the_others_and_changes_no_bit(run, tmp_path):
    """torchrun starts the group again; it finds its folder by itself and ends as the run that nobody disturbed."""
    script = tmp_path / "dies.py"
    script.write_text(
        "import os, signal, sys\nimport spiketrain.train\nfrom spiketrain.cli import main\n"
        "module, seen = spiketrain.train.__globals__, []\nreal = module['train_step']\n"
        "def step(*words):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 7 and os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(*words)\n"
        "module['train_step'] = step\n"
        f"sys.exit(main(['train', 'digits', *{[*TINY, '--output', str(tmp_path / 'out')]!r}]))\n"
    )
    done = torchrun("--max-restarts", "1", str(script), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    ours, theirs = (load_file(str(f / "weights.safetensors")) for f in (folder, run))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert [e["train_loss"] for e in Record.load(folder).curve] == [e["train_loss"] for e in Record.load(run).curve]


def test_dropping_the_norm_makes_parts_equal_the_whole_batch():
    """What is equal: gradients where no norm looks at the batch (here: evaluation mode). With it, statistics are of a part."""
    network = st.models.build("digits_convnet", in_channels=1, width=0.25, kernel="reference").double()
    inputs, labels = torch.randn(12, 1, 8, 8, dtype=torch.float64), torch.randint(0, 10, (12,))
    equal = {}
    for training in (False, True):
        network.train(training)
        grads = []
        for sizes in ([12], [4, 4, 4]):
            network.zero_grad()
            for x, y in zip(inputs.split(sizes), labels.split(sizes), strict=True):
                (F.cross_entropy(network(x).mean(0), y) * len(y) / 12).backward()
            grads.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
        equal[training] = bool(torch.allclose(*grads, rtol=1e-9, atol=1e-12))
    assert equal == {False: True, True: False}


def test_folders_are_found_again_by_the_id_that_torchrun_has(tmp_path, monkeypatch):
    from spiketrain import folders

    recipe = st.recipes.get("digits")
    assert folders.find(recipe, tmp_path, None, None).folder is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "night/7")
    place = folders.find(recipe, tmp_path, None, None)
    assert place.folder == tmp_path / "digits-s0-night-7" and place.checkpoint is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert folders.find(recipe, tmp_path, None, None).folder is None
    made = folders.new(tmp_path, recipe)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert folders.find(recipe, tmp_path, None, None).folder == made
    assert not list(Path(tmp_path).glob("**/*.part"))
