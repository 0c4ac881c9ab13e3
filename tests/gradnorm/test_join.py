"""Pieces of gradients become one tensor, in the order of memory that they have."""

from __future__ import annotations

import pytest
import torch

from upslope.gradnorm.core.chunks import join


@pytest.mark.parametrize("sizes", [(5,), (2, 2, 1), (1, 4)])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (0, 3, 1, 2)])
def test_joined_pieces_are_those_of_cat(sizes, order):
    shape = (5, 3, 4, 2)
    values = torch.randn([shape[d] for d in order]).permute([order.index(d) for d in range(4)])
    whole = join(iter(values.split(sizes)), 5)
    assert torch.equal(whole, values)
    assert whole.stride() == values.stride()


def test_pieces_of_one_dimension():
    assert torch.equal(join(iter([torch.ones(1), torch.zeros(2)]), 3), torch.tensor([1.0, 0, 0]))
