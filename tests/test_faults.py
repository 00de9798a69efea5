"""Whether what is not finite is found."""

import math

import pytest
import torch

from spiketrain.faults import Finite


def test_large_numbers_are_finite():
    numbers = [torch.full((1000, 1000), 1e30), torch.full((3, 3), -1e30, dtype=torch.float64), torch.zeros(()), torch.zeros(0)]
    assert Finite(numbers) and Finite([])
    assert Finite([torch.full((512, 512), 6e4, dtype=torch.float16), torch.full((512, 512), 3e30, dtype=torch.bfloat16)])


@pytest.mark.parametrize("bad", [(math.nan,), (math.inf,), (-math.inf,), (math.inf, -math.inf)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_number_that_is_not_finite_is_found_among_many(bad, dtype):
    among = torch.randn(64, 3, 5, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    for i, value in enumerate(bad):
        among[17 + i, 1, 4, 2] = value
    assert not Finite([torch.randn(1000), among, torch.zeros(())])


def test_numbers_that_are_infinite_in_two_tensors_do_not_cancel():
    assert not Finite([torch.tensor(math.inf), torch.tensor(-math.inf)])
