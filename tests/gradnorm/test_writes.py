"""Samples that a model writes into what is made of weights: exact, be it one by one."""

from __future__ import annotations

import itertools

import pytest
import torch
from test_compositions import agree_by_some_path
from test_uses_of_parameters import Functional


def _into_slots(m, x):
    """Learned tokens, one of which gives way to the sample."""
    tokens = m.t.expand(len(x), 3, 4).clone()
    tokens[:, 1] = x.sin()
    return (tokens @ m.w).tanh().mean(1)


def _added_to(m, x):
    total = m.t.expand(len(x), 4).clone()
    total.add_(x.sin())
    return total @ m.w


def _incremented(m, x):
    total = m.t.expand(len(x), 4).clone()
    before = total
    total += x.sin()
    return before @ m.w


def _multiplied_in_part(m, x):
    total = m.t.expand(len(x), 4).clone()
    total[:, 1:3].mul_(x[:, 1:3])
    return total @ m.w


def _copied(m, x):
    total = (m.t * 2).expand(len(x), 4).contiguous()
    total[:, 2:].copy_(x[:, 2:])
    return total @ m.w


def _by_index(m, x):
    total = (m.t * 2).expand(len(x), 4).clone()
    total.index_put_((torch.tensor([0]), torch.tensor([2])), x[0, 0])
    return total @ m.w


CASES = {
    "tokens": (_into_slots, {"t": (1, 3, 4), "w": (4, 3)}),
    "add_": (_added_to, {"t": (4,), "w": (4, 3)}),
    "+=": (_incremented, {"t": (4,), "w": (4, 3)}),
    "mul_ through a view": (_multiplied_in_part, {"t": (4,), "w": (4, 3)}),
    "copy_ through a view": (_copied, {"t": (4,), "w": (4, 3)}),
    "index_put_": (_by_index, {"t": (4,), "w": (4, 3)}),
}


@pytest.mark.parametrize(("case", "n"), [*itertools.product(CASES, (1, 3))][:-1])
def test_samples_written_into_what_is_made_of_weights(case, n):
    function, shapes = CASES[case]
    torch.manual_seed(0)
    paths = ("kernels", "replayed", "one by one")
    agree_by_some_path(Functional(function, **shapes), torch.randn(n, 4), paths)
