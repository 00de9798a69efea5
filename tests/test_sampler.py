"""Which samples an epoch has: all of them, every class as often, or those whose losses were last the greatest."""

import sys

import pytest
import torch
from safetensors.torch import load_file

import spiketrain as st
from spiketrain.cli import main
from spiketrain.data.sampler import Sampler
from spiketrain.objective import Objective, difficulty
from spiketrain.signals import Stopped

LABELS = torch.arange(40) % 4
ENGINE = sys.modules["spiketrain.train"]


def drawn(sampler: Sampler, epoch: int) -> torch.Tensor:
    return sampler.order(torch.Generator().manual_seed(epoch))


def test_an_epoch_has_every_sample_once():
    sampler = Sampler(LABELS, seed=0)
    sampler.note(torch.arange(40), torch.rand(40))
    sampler.end_epoch()
    assert len(sampler) == 40 and drawn(sampler, 0).sort().values.tolist() == list(range(40))
    assert not torch.equal(drawn(sampler, 0), drawn(sampler, 1)) and torch.equal(drawn(sampler, 0), drawn(Sampler(LABELS, 0), 0))
    few = Sampler(LABELS, seed=0, limit=7)
    assert set(drawn(few, 0).tolist()) == set(drawn(few, 1).tolist()) and len(few) == 7


def test_balanced_it_draws_every_class_as_often():
    labels = torch.cat([torch.zeros(500), torch.ones(400), torch.full((60,), 2)]).long()
    sampler = Sampler(labels, seed=0, balanced=True)
    counts = torch.bincount(labels[torch.cat([drawn(sampler, e) for e in range(12)])]).float()
    assert float(counts.max() / counts.min()) < 1.1


def test_the_hardest_are_those_of_the_greatest_losses_after_all_have_been_seen():
    sampler = Sampler(LABELS, seed=0, hardest=0.5)
    losses = torch.rand(40)
    halves = []
    for epoch in range(2):
        order = drawn(sampler, epoch)
        halves.append(order)
        sampler.note(order[:13], losses[order[:13]])
        sampler.note(order[13:], losses[order[13:]])
        assert torch.equal(order, drawn(sampler, epoch))  # what is noted decides nothing before the epoch ends
        sampler.end_epoch()
    assert torch.cat(halves).sort().values.tolist() == list(range(40))
    third = drawn(sampler, 2)
    assert set(third.tolist()) == set(losses.topk(20).indices.tolist())
    assert not torch.equal(third, third.sort().values) and not torch.equal(losses[third], losses[third].sort(descending=True).values)
    sampler.note(third, torch.zeros(20))  # learned: now it is the others' turn, whose losses are as they were
    sampler.end_epoch()
    assert set(drawn(sampler, 3).tolist()) == set(range(40)) - set(third.tolist())


def test_what_decides_is_the_cross_entropy_of_each_sample():
    logits, labels = torch.randn(3, 5, 10, dtype=torch.float64), torch.arange(5)
    each = difficulty(logits, labels)
    p = logits.float().mean(0).softmax(-1)
    torch.testing.assert_close(each, -p[torch.arange(5), labels].log())
    torch.testing.assert_close(each.mean(), Objective("ce")(logits, labels))


def test_a_state_is_of_as_many_samples():
    sampler = Sampler(LABELS, seed=0, hardest=0.5)
    sampler.restore(Sampler(LABELS, seed=0, hardest=0.5).state())
    assert Sampler(LABELS, seed=0).state() == {}
    for wrong in ({}, Sampler(LABELS[:30], seed=0, hardest=0.5).state()):
        with pytest.raises(ValueError, match="40 samples"):
            sampler.restore(wrong)


@pytest.mark.parametrize("at", [7, 8, 9])
def test_stopped_and_resumed_it_goes_on_to_the_same_bits(at, tmp_path, monkeypatch):
    """In the middle of the second epoch, at its end, and at the beginning of the third; parts of batches note their losses together."""
    recipe = st.recipes.get("digits").but(hardest=0.5, epochs=4, limit=256, width=0.25, batch_size=32, accumulate=2)
    whole, real, seen = st.train(recipe, output=tmp_path, device="cpu", quiet=True), ENGINE.train_step, []
    assert len({e["train_loss"] for e in whole.curve}) == 4

    def step(*arguments):
        answer = real(*arguments)
        seen.append(1)
        if len(seen) == 1 + at:  # one in the warm-up
            raise Stopped(15, "killed")
        return answer

    monkeypatch.setattr(ENGINE, "train_step", step)
    with pytest.raises(Stopped):
        st.train(recipe, into=tmp_path / "run", device="cpu", quiet=True, checkpoint_every="0.00001s")
    monkeypatch.undo()
    resumed = st.train(recipe, into=tmp_path / "run", device="cpu", quiet=True)
    ours, theirs = (load_file(str(r.folder / "weights.safetensors")) for r in (resumed, whole))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert [e["train_loss"] for e in resumed.curve] == [e["train_loss"] for e in whole.curve]


@pytest.mark.parametrize("samples", [3, {"losses": 3}, {"losses": torch.zeros(4), "seen": torch.zeros(4)}, {}], ids=str)
def test_a_checkpoint_of_other_samples_is_one_line(samples, tmp_path, capsys):
    recipe = st.recipes.get("digits").but(hardest=0.5, epochs=1, limit=64, width=0.25)
    run = st.train(recipe, output=tmp_path, device="cpu", quiet=True).folder
    file = next(run.glob("checkpoint-*")) / "state.pt"
    state = torch.load(file, weights_only=True)
    torch.save(state | {"samples": samples}, file)
    (run / "record.json").unlink()
    assert main(["train", "--resume", str(run), "--quiet", "--device", "cpu"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and ("losses" in said[0])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--balanced",), "not with balanced"),
        (("--mixup", "0.2", "--cutmix", "1"), "not with mixup or cutmix"),
        (("--event-augment", "eventmix"), "not with event_augment eventmix"),
        (("--hardest", "0"), "hardest must be at least 0.01"),
        (("--hardest", "2"), "hardest must be at most 1"),
    ],
)
def test_what_does_not_go_together_is_one_line(flags, said, tmp_path, capsys):
    assert main(["train", "digits", "--hardest", "0.5", *flags, "--output", str(tmp_path), "--quiet"]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())
