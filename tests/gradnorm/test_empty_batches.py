"""A batch of no samples has no norms: of every layer that itself takes such a batch."""

from __future__ import annotations

import pytest
import torch
from test_uses_of_parameters import Functional
from torch import nn
from torch.nn import functional as F

from upslope.errors import GradientNormError
from upslope.gradnorm import (
    estimated_rms_length,
    expected_gradient_length,
    explain,
    gradient_norms,
    gradient_sketches,
    samples_that_fit,
)


class First(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs):
        return self.network(*inputs)[0]


class SelfAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, x)[0]


LAYERS = {
    "linear": (nn.Linear(4, 3), (4,)),
    "conv1d": (nn.Conv1d(4, 3, 3), (4, 6)),
    "conv2d": (nn.Conv2d(4, 4, 3, groups=4), (4, 6, 6)),
    "conv3d": (nn.Conv3d(2, 3, 3), (2, 4, 4, 4)),
    "transposed": (nn.ConvTranspose2d(4, 3, 3), (4, 6, 6)),
    "batch norm": (nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)), (4, 6, 6)),
    "layer norm": (nn.LayerNorm((4, 5)), (4, 5)),
    "group norm": (nn.GroupNorm(2, 4), (4, 6, 6)),
    "group norm of vectors": (nn.GroupNorm(1, 4), (4,)),
    "rms norm": (nn.RMSNorm(4), (4,)),
    "prelu": (nn.PReLU(4), (4, 6)),
    "attention": (SelfAttention(8, 2, batch_first=True), (5, 8)),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (5, 8)),
    "lstm": (First(nn.LSTM(4, 3, batch_first=True, bidirectional=True)), (5, 4)),
    "gru": (First(nn.GRU(4, 3, 2, batch_first=True)), (5, 4)),
    "rnn": (First(nn.RNN(4, 3, batch_first=True)), (5, 4)),
    "lstm cell": (First(nn.LSTMCell(4, 3)), (4,)),
    "gru cell": (nn.GRUCell(4, 3), (4,)),
    "bilinear": (Functional(lambda m, x: F.bilinear(x, x, m.w), w=(3, 4, 4)), (4,)),
    "einsum": (Functional(lambda m, x: torch.einsum("ni,ij,jo->no", x, m.w, m.v),
                          w=(4, 2), v=(2, 3)), (4,)),
    "replayed": (Functional(lambda m, x: torch.cdist(x, m.w), w=(3, 4)), (4,)),
    "joined": (Functional(lambda m, x: torch.cat([m.p.expand(len(x), 1, 4), x[:, None]], 1),
                          p=(1, 1, 4)), (4,)),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYERS)
def test_no_samples_have_no_norms(case):
    model, shape = LAYERS[case]
    x = torch.randn(0, *shape)

    def loss(outputs):
        return outputs.flatten(1).sum(dim=1)

    norms = gradient_norms(model.eval(), x, loss)
    assert norms.shape == (0,)
    assert norms.dtype == torch.float64
    assert gradient_sketches(model, x, loss, dim=8).vectors.shape == (0, 8)


def test_no_samples_of_ids():
    ids = torch.zeros(0, 5, dtype=torch.long)
    for model in (nn.Embedding(7, 3), nn.EmbeddingBag(7, 3), nn.EmbeddingBag(7, 3, mode="max")):
        assert gradient_norms(model, ids, lambda out: out.flatten(1).sum(dim=1)).shape == (0,)


def test_what_is_read_off_a_sample_needs_one():
    for ask in (explain, samples_that_fit):
        with pytest.raises(GradientNormError, match=r"Expected `inputs` to hold .* but got none"):
            ask(nn.Linear(5, 3), torch.randn(0, 5))


@pytest.mark.parametrize("kind", ["mean", "rms"])
def test_no_samples_have_no_expected_length(kind):
    found = expected_gradient_length(nn.Linear(5, 3), torch.randn(0, 5), kind=kind)
    assert [row.shape for row in found] == [(0,)] * 3


@pytest.mark.filterwarnings("error")
def test_no_samples_have_no_estimate_and_no_warning():
    estimate = estimated_rms_length(nn.Linear(5, 3), torch.randn(0, 5))
    assert estimate.scores.shape == estimate.standard_error.shape == (0,)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_sequences_of_no_steps_are_told_by_torch(kind):
    model = First(kind(4, 3, batch_first=True, bidirectional=True))
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        gradient_norms(model, torch.randn(2, 0, 4), lambda x: x.sum(dim=(1, 2)))
