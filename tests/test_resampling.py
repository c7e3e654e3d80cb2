"""Weights turned into numbers of copies."""

import pytest
import torch
from laws import assert_mean
from torch import tensor

from pyro_ebm.kernels.resampling import systematic


@pytest.mark.parametrize("weights", [[0.05, 0.32, 0.03, 0.4, 0.2], [1.0, 0.0, 0.0], [0.5, 0.5]])
def test_each_row_is_drawn_in_proportion_and_never_a_whole_time_off(weights):
    weights = tensor(weights)
    rows = systematic(weights.expand(20_000, -1), torch.Generator().manual_seed(0))
    counts = torch.nn.functional.one_hot(rows, len(weights)).sum(1).double()
    wanted = len(weights) * weights
    assert (counts - wanted).abs().max() < 1
    drawn = wanted % 1 != 0  # of the others there is the same number each time
    assert torch.equal(counts[:, ~drawn], wanted[~drawn].expand(20_000, -1))
    if drawn.any():
        assert_mean(counts[:, drawn], wanted[drawn])
