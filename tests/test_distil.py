"""Self-distillation over time: values worked out by hand, and who gets a gradient."""

import math

import pytest
import torch

from spiketrain.errors import UserError
from spiketrain.objective import LOSSES, Objective, distillation

A, B, C = [0.0, math.log(3.0)], [math.log(2.0), 0.0], [0.0, 0.0]  # probabilities (1/4, 3/4), (2/3, 1/3), (1/2, 1/2)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def soft(logits, tau):
    total = sum(math.exp(o / tau) for o in logits)
    return [math.exp(o / tau) / total for o in logits]


def test_the_most_confident_step_teaches_the_least_confident_of_each_sample():
    logits = torch.tensor([[B, A], [A, C], [C, B]])  # [T=3, B=2, K=2]: in both samples A teaches C
    assert float(distillation(logits, 1.0)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)
    halves = torch.tensor([[A, C], [B, B]])  # A teaches B, and B teaches C
    expected = (kl(soft(A, 2), soft(B, 2)) + kl(soft(B, 2), soft(C, 2))) / 2
    assert float(distillation(halves, 2.0)) == pytest.approx(4 * expected, abs=1e-6)


def test_the_teacher_gets_no_gradient_and_the_student_the_known_one():
    logits = torch.tensor([[A], [B], [C]], requires_grad=True)
    distillation(logits, 2.0).backward()
    assert torch.count_nonzero(logits.grad[:2]) == 0
    expected = [2 * (q - p) for p, q in zip(soft(A, 2), soft(C, 2), strict=True)]  # τ²·(softmax(w/τ) − softmax(s/τ))/τ
    assert logits.grad[2, 0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_added_to_every_loss_and_is_nothing_with_one_step(name):
    logits, labels = torch.randn(4, 6, 5), torch.randint(0, 5, (6,))
    plain, with_it = Objective(name, smoothing=0.1), Objective(name, smoothing=0.1, distil=0.7, distil_tau=3.0)
    torch.testing.assert_close(with_it(logits, labels), plain(logits, labels) + 0.7 * distillation(logits, 3.0))
    assert not torch.equal(with_it(logits, labels), plain(logits, labels))
    one = logits[:1].clone().requires_grad_()
    same = logits[:1].clone().requires_grad_()
    with_it(one, labels).backward()
    plain(same, labels).backward()
    assert torch.equal(with_it(one, labels), plain(same, labels)) and torch.equal(one.grad, same.grad)


def test_wrong_numbers_are_named():
    for wrong in ({"distil": -1.0}, {"distil": 1.0, "distil_tau": 0.0}):
        with pytest.raises(UserError, match="distil"):
            Objective(**wrong)
