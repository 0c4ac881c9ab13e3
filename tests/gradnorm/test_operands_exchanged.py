"""Samples where a layer has its weights, and weights where it has its input."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees
from test_uses_of_parameters import Functional
from torch import nn
from torch.nn import functional as F


def of_each(function):
    """Apply a function of the model and one sample to each sample by itself."""
    return lambda m, x: torch.stack([function(m, row).flatten() for row in torch.tanh(x * m.s)])


def of_batch(function):
    return lambda m, x: function(m, torch.tanh(x * m.s)).flatten(1)


EXCHANGED = {
    "linear, its bias": (of_each(lambda m, r: F.linear(r.view(2, 4), m.w, r[:3])), {"w": (3, 4)}),
    "linear, its bias, all": (of_batch(lambda m, x: F.linear(x, m.w, x)), {"w": (8, 8)}),
    "linear, its weight": (
        of_each(lambda m, r: F.linear(m.w, r.view(2, 4), m.b)), {"w": (3, 4), "b": (2,)},
    ),
    "linear, weight alone": (
        of_each(lambda m, r: F.linear(r[:4], r.view(2, 4), m.b)), {"b": (2,)},
    ),
    "layer_norm, its bias": (
        of_each(lambda m, r: F.layer_norm(r.view(2, 4), (4,), m.w, r[:4])), {"w": (4,)},
    ),
    "layer_norm, its scale": (
        of_each(lambda m, r: F.layer_norm(r.view(2, 4), (4,), r[:4], m.w)), {"w": (4,)},
    ),
    "layer_norm, options by name": (
        of_each(lambda m, r: torch.layer_norm(r.view(2, 4), (4,), r[:4], bias=m.w, eps=0.1)),
        {"w": (4,)},
    ),
    "group_norm, options by name": (
        of_each(lambda m, r: torch.group_norm(r.view(1, 4, 2), 2, m.w, bias=r[4:], eps=0.1)),
        {"w": (4,)},
    ),
    "layer_norm, its input": (
        of_each(lambda m, r: F.layer_norm(m.w, (4,), r[:4], m.b)), {"w": (2, 4), "b": (4,)},
    ),
    "rms_norm, its input": (of_each(lambda m, r: F.rms_norm(m.w, (4,), r[:4])), {"w": (2, 4)}),
    "group_norm, its input": (
        of_each(lambda m, r: F.group_norm(m.w, 2, r[:4], r[4:])), {"w": (2, 4, 3)},
    ),
    "group_norm, its bias": (
        of_each(lambda m, r: F.group_norm(r.view(1, 4, 2), 2, m.w, r[4:])), {"w": (4,)},
    ),
    "instance_norm, its scale": (
        of_each(lambda m, r: F.instance_norm(r.view(1, 2, 4), None, None, r[:2], m.w)),
        {"w": (2,)},
    ),
    "batch_norm, its scale": (
        of_each(lambda m, r: F.batch_norm(
            r.view(2, 4), m.zero, m.one, r[:4], m.w)), {"w": (4,)},
    ),
    "prelu, its input": (of_each(lambda m, r: F.prelu(m.w, r[:1])), {"w": (3, 3)}),
    "prelu, its input and channels": (of_each(lambda m, r: F.prelu(m.w, r[:3])), {"w": (3, 3)}),
    "conv1d, its bias": (
        of_each(lambda m, r: F.conv1d(r.view(1, 2, 4), m.w, r[:3], padding=1)),
        {"w": (3, 2, 2)},
    ),
    "conv1d, its weight": (
        of_each(lambda m, r: F.conv1d(r.view(1, 2, 4), r.view(2, 2, 2), m.b)), {"b": (2,)},
    ),
    "conv1d, its input": (
        of_each(lambda m, r: F.conv1d(m.w, r.view(2, 2, 2), m.b)), {"w": (1, 2, 4), "b": (2,)},
    ),
    "conv2d, one image": (
        of_each(lambda m, r: F.conv2d(r.view(1, 2, 4), m.w, m.b, (1, 2))),
        {"w": (3, 1, 2, 2), "b": (3,)},
    ),
    "gru_cell, its input and state": (
        of_each(lambda m, r: torch.gru_cell(m.x, m.h, m.w + r[0], m.v) * r[:2]),
        {"x": (1, 3), "h": (1, 2), "w": (6, 3), "v": (6, 2)},
    ),
    "lstm_cell, its states": (
        of_each(lambda m, r: torch.lstm_cell(r.view(2, 4), (m.h, m.c), m.w, m.v)[0]),
        {"h": (2, 2), "c": (2, 2), "w": (8, 4), "v": (8, 2)},
    ),
    "conv_transpose2d, one image": (
        of_each(lambda m, r: F.conv_transpose2d(r.view(2, 2, 2), m.w, r[:3], 2)),
        {"w": (2, 3, 2, 2)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("case", EXCHANGED)
def test_samples_may_stand_where_a_layer_has_weights(case, n):
    function, shapes = EXCHANGED[case]
    torch.manual_seed(0)
    model = Functional(function, s=(8,), **shapes)
    model.register_buffer("zero", torch.zeros(4))
    model.register_buffer("one", torch.ones(4))
    path = "replayed" if case == "conv1d, its input" else "kernels"
    assert_agrees(model, torch.randn(n, 8), path=path)


class Decoder(nn.Module):
    """Decodes words of its own choice, from a first word that is the same for all samples."""

    def __init__(self):
        super().__init__()
        self.words, self.cell, self.out = nn.Embedding(5, 4), nn.GRUCell(4, 4), nn.Linear(4, 5)

    def forward(self, x):
        words, logits = torch.zeros(len(x), dtype=torch.long), []
        for _ in range(3):
            x = self.cell(self.words(words), x)
            logits.append(self.out(x))
            words = logits[-1].argmax(dim=1)
        return torch.stack(logits, dim=2)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_the_first_word_of_a_decoder_depends_on_no_sample(n):
    torch.manual_seed(0)
    assert_agrees(Decoder(), torch.randn(n, 4))
