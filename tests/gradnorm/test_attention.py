"""Attention, transformer encoders, vision transformers, against the oracle."""

from __future__ import annotations

import pytest
import torch
from oracle import assert_agrees
from torch import Tensor, nn
from torch.nn import functional as F


class SelfAttention(nn.Module):
    def __init__(self, batch_first: bool, **options) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options)
        self.head, self.batch_first = nn.Linear(8, 3), batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        y, _ = self.attention(x, x, x)
        return self.head(y.mean(dim=1 if self.batch_first else 0))


class CrossAttention(nn.Module):
    def __init__(self, batch_first: bool, **options) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options)
        self.head, self.batch_first = nn.Linear(8, 3), batch_first

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not self.batch_first:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        y, _ = self.attention(q, k, v, need_weights=False)
        return self.head(y.mean(dim=1 if self.batch_first else 0))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"add_bias_kv": True},
                                     {"add_zero_attn": True}], ids=str)  # fmt: skip
@pytest.mark.parametrize("n", [1, 3, 5])
def test_self_attention(n, options, batch_first):
    torch.manual_seed(0)
    assert_agrees(SelfAttention(batch_first, **options), torch.randn(n, 5, 8))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.parametrize(("kdim", "vdim"), [(8, 8), (5, 6), (8, 6)])
def test_cross_attention(kdim, vdim, extra, batch_first):
    torch.manual_seed(0)
    model = CrossAttention(batch_first, kdim=kdim, vdim=vdim, add_bias_kv=extra)
    assert_agrees(model, (torch.randn(3, 4, 8), torch.randn(3, 6, kdim), torch.randn(3, 6, vdim)))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor, padded: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype).isinf()
        y, _ = self.attention(x, x, x, key_padding_mask=padded, attn_mask=causal)
        return self.head(y.mean(dim=1))


def test_attention_with_masks():
    torch.manual_seed(0)
    padded = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1]]).bool()
    assert_agrees(Masked(), (torch.randn(3, 4, 8), padded))


class Encoder(nn.Module):
    """Words, class token, position embeddings, two layers, LayerScale, head."""

    def __init__(self, batch_first: bool, norm_first: bool, token: str) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(1, 6, 8))
        self.token, self.token_by = nn.Parameter(torch.randn(1, 1, 8)), token
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, batch_first=batch_first, norm_first=norm_first, activation="gelu"
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.scale, self.head = nn.Parameter(torch.rand(8)), nn.Linear(8, 4)
        self.batch_first = batch_first

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        if self.token_by == "expand":
            token = self.token.expand(len(x), -1, -1)
        else:
            token = self.token.repeat(len(x), 1, 1)
        x = torch.cat([token, x], dim=1) + self.positions
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.layers(x) * self.scale
        return self.head(x[:, 0] if self.batch_first else x[0])


@pytest.mark.parametrize("token", ["expand", "repeat"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(("batch_first", "n"), [(True, 3), (False, 3), (False, 6), (True, 6)])
def test_transformer_encoder(batch_first, n, norm_first, token):
    torch.manual_seed(0)
    assert_agrees(Encoder(batch_first, norm_first, token), torch.randint(0, 11, (n, 5)))


class VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8) * 0.1)
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.scale, self.head = nn.Parameter(torch.full((8,), 0.1)), nn.Linear(8, 3)
        # A bias for each pair of positions and head, as in Swin transformers.
        self.bias = nn.Parameter(torch.randn(2, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        x = x + self.scale * self.out(y.transpose(1, 2).flatten(2))
        return self.head(x[:, 0])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_vision_transformer_with_attention_bias(n):
    torch.manual_seed(0)
    assert_agrees(VisionTransformer(), torch.randn(n, 3, 8, 8))


class Latents(nn.Module):
    """Learned queries, normalised and projected before they meet a sample (Perceiver, DETR)."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.queries, self.norm = nn.Embedding(4, 8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.head, self.batch_first = nn.Linear(8, 3), batch_first

    def forward(self, x: Tensor) -> Tensor:
        if self.batch_first:
            q = self.queries.weight.expand(len(x), -1, -1)
        else:
            q, x = self.queries.weight.unsqueeze(1).repeat(1, len(x), 1), x.transpose(0, 1)
        y, _ = self.attention(self.norm(q), x, x)
        return self.head((y + q).mean(dim=1 if self.batch_first else 0))


@pytest.mark.parametrize("batch_first", [True, False])
def test_learned_queries(batch_first):
    torch.manual_seed(0)
    assert_agrees(Latents(batch_first), torch.randn(3, 5, 8))


class BiasedLatents(nn.Module):
    """Learned queries, and a learned bias for each query and position."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 2, 3, 4))
        self.bias = nn.Parameter(torch.randn(2, 3, 5))
        self.keys, self.head = nn.Linear(8, 16), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.keys(x).unflatten(-1, (2, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(self.queries, k, v, self.bias)
        return self.head(y.transpose(1, 2).flatten(2).mean(dim=1))


@pytest.mark.parametrize("n", [1, 3])
def test_learned_queries_with_a_learned_bias(n):
    torch.manual_seed(0)
    assert_agrees(BiasedLatents(), torch.randn(n, 5, 8))


class Windows(nn.Module):
    """Attention within windows that are folded into the batch, and scattered over it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:  # (n, 4, 4, 4)
        n = len(x)
        # Windows of 2x2; the window's index is the slow one of the folded dimension.
        x = x.unflatten(1, (2, 2)).unflatten(3, (2, 2)).permute(1, 3, 0, 2, 4, 5)
        y = self.layer(x.flatten(3, 4).flatten(0, 2))
        return self.head(y.unflatten(0, (2, 2, n)).mean(dim=(0, 1, 3)))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_windows_folded_into_the_batch_window_first(n):
    torch.manual_seed(0)
    assert_agrees(Windows(), torch.randn(n, 4, 4, 4))
