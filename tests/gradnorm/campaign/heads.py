"""Heads and losses that look at the data, on bodies with square shapes everywhere.

Few gradients are not zero, and as many samples as tokens: which dimension the samples are in
cannot be read off such gradients.
"""

# ruff: noqa: E501  (tables, which read better whole)
from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from campaign.case import Batch, Case, first_tensor, readout


class TransformerBody(nn.Module):
    """Tokens (n, L, d) through nn.TransformerEncoder, samples first or second."""

    def __init__(
        self, d: int, *, batch_first: bool = True, norm_first: bool = False, depth: int = 2
    ):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            d, 2, 2 * d, dropout=0, batch_first=batch_first, norm_first=norm_first
        )
        self.first = nn.Linear(d, d)
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.body(x) if self.batch_first else self.body(x.transpose(0, 1)).transpose(0, 1)


class RecurrentBody(nn.Module):
    """Tokens through a recurrent network, samples first or second."""

    def __init__(self, kind: str, d: int, *, batch_first: bool = True, twice: bool = False):
        super().__init__()
        width = d // 2 if twice else d
        self.rnn = getattr(nn, kind)(d, width, batch_first=batch_first, bidirectional=twice)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        if self.batch_first:
            return self.rnn(x)[0]
        return self.rnn(x.transpose(0, 1))[0].transpose(0, 1)


class TokensSecond(nn.Module):
    """Layers on (L, n, d): sample i is column i."""

    def __init__(self, d: int):
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(d, d), nn.Linear(d, d), nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(torch.tanh(self.a(x.transpose(0, 1))))).transpose(0, 1)


class Flattened(nn.Module):
    """Layers on (n L, d), or (L n, d) with the samples inside."""

    def __init__(self, d: int, *, inside: bool):
        super().__init__()
        self.a, self.b, self.inside = nn.Linear(d, d), nn.Linear(d, d), inside

    def forward(self, x: Tensor) -> Tensor:
        n, length, d = x.shape
        rows = (x.transpose(0, 1) if self.inside else x).reshape(-1, d)
        rows = self.b(torch.tanh(self.a(rows)))
        if self.inside:
            return rows.view(length, n, d).transpose(0, 1)
        return rows.view(n, length, d)


class Windows(nn.Module):
    """Attention in windows of two tokens, window-major or sample-major, perhaps shifted."""

    def __init__(self, d: int, *, major: str, shift: int):
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.major, self.shift = major, shift

    def forward(self, x: Tensor) -> Tensor:
        n, length, d = x.shape
        x = x.roll(self.shift, 1).view(n, length // 2, 2, d)
        x = x.transpose(0, 1) if self.major == "window" else x
        lead = x.shape[:2]
        q, k, v = self.qkv(x.reshape(-1, 2, d)).chunk(3, dim=-1)
        x = self.out((q @ k.transpose(1, 2)).softmax(-1) @ v).view(*lead, 2, d)
        x = x.transpose(0, 1) if self.major == "window" else x
        return x.reshape(n, length, d).roll(-self.shift, 1)


class ConvolutionOverTokens(nn.Module):
    """Conv1d on (n, d, L), or with the tokens as the batch: (L, d, n) has no meaning, (n, L, d) has."""

    def __init__(self, d: int, length: int, *, channels: str):
        super().__init__()
        width = d if channels == "features" else length
        self.conv, self.channels = nn.Conv1d(width, width, 3, padding=1), channels

    def forward(self, x: Tensor) -> Tensor:
        if self.channels == "features":
            return self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.conv(x)


class Mixer(nn.Module):
    """Layers over features and over tokens in turn, from transposes."""

    def __init__(self, d: int, length: int):
        super().__init__()
        self.over_tokens, self.over_features = nn.Linear(length, length), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.tanh(self.over_tokens(x.transpose(1, 2))).transpose(1, 2)
        return x + torch.tanh(self.over_features(x))


class OuterFirst(nn.Module):
    """Heads before samples: (h, n, L, d / h), as written with permute and a stacked product."""

    def __init__(self, d: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, d, d // 2) / d**0.5)
        self.out = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        heads = torch.tanh(torch.matmul(x[None], self.weight[:, None]))  # (h, n, L, d / h)
        return self.out(heads.permute(1, 2, 0, 3).flatten(2))


def bodies(d: int, length: int) -> dict[str, Callable[[], nn.Module]]:
    return {
        "transformer": lambda: TransformerBody(d),
        "transformer, norm first": lambda: TransformerBody(d, norm_first=True),
        "transformer, tokens first": lambda: TransformerBody(d, batch_first=False, depth=1),
        "LSTM": lambda: RecurrentBody("LSTM", d),
        "GRU, tokens first": lambda: RecurrentBody("GRU", d, batch_first=False),
        "RNN, both directions": lambda: RecurrentBody("RNN", d, twice=True),
        "tokens second": lambda: TokensSecond(d),
        "flattened": lambda: Flattened(d, inside=False),
        "flattened, samples inside": lambda: Flattened(d, inside=True),
        "windows": lambda: Windows(d, major="sample", shift=0),
        "windows, window-major": lambda: Windows(d, major="window", shift=1),
        "convolution": lambda: ConvolutionOverTokens(d, length, channels="features"),
        "convolution, tokens are channels": lambda: ConvolutionOverTokens(
            d, length, channels="tokens"
        ),
        "mixer": lambda: Mixer(d, length),
        "heads first": lambda: OuterFirst(d),
    }


def at(tokens: Tensor, index: Tensor) -> Tensor:
    """The token of this index of each sample."""
    return tokens[torch.arange(len(tokens)), index]


READERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "last real token": lambda h, _: at(h, (h.shape[1] * (_.float().mean((1, 2)) % 1)).long()),
    "first token": lambda h, _: h[:, 0],
    "last token": lambda h, _: h[:, -1],
    "token of the largest input": lambda h, x: at(h, x.sum(-1).argmax(1)),
    "largest over tokens": lambda h, _: h.amax(1),
    "gathered feature": lambda h, x: h.gather(
        2, x.abs().argmax(2, keepdim=True).expand(-1, -1, 1)
    ).flatten(1),
    "two likeliest tokens": lambda h, x: h.gather(
        1, x.sum(-1).topk(2, dim=1).indices[..., None].expand(-1, -1, h.shape[2])
    ).flatten(1),
    "sorted over tokens": lambda h, _: h.sort(dim=1).values[:, -2:].flatten(1),
    "masked mean": lambda h, x: (h * (x.sum(-1) > 0.5)[..., None]).sum(1),
    "all tokens": lambda h, _: h.flatten(1),
}


class Read(nn.Module):
    """A body, a reader, and a last layer."""

    def __init__(self, body: nn.Module, reader: str, d: int, length: int, classes: int):
        super().__init__()
        self.body, self.reader = body, READERS[reader]
        width = self.reader(torch.zeros(1, length, d), torch.zeros(1, length, d)).shape[1]
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.reader(self.body(x), x))


def labels_of(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets["label"] % outputs.shape[1], reduction="none")


def hinge(outputs: Any, targets: dict[str, Tensor]) -> Tensor:
    """A margin that most samples satisfy."""
    return (readout(outputs) + targets["offset"] - 2).clamp(min=0)


def live(outputs: Any, targets: dict[str, Tensor]) -> Tensor:
    """A loss that is exactly zero for most samples."""
    return readout(outputs) * (targets["offset"] > 1)


def saturated(outputs: Any, targets: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of logits so large that many gradients are exactly zero."""
    z = first_tensor(outputs).flatten(1)
    return F.cross_entropy(z * 400, z.argmax(1), reduction="none") + 0 * targets["offset"]


def one_entry(outputs: Any, targets: dict[str, Tensor]) -> Tensor:
    """The logit that a label names."""
    z = first_tensor(outputs).flatten(1)
    return z.gather(1, (targets["label"] % z.shape[1])[:, None])[:, 0]


def largest(outputs: Any, targets: dict[str, Tensor]) -> Tensor:
    """The largest logit."""
    return first_tensor(outputs).flatten(1).amax(1) + 0 * targets["offset"]


def margin(outputs: Any, targets: dict[str, Tensor]) -> Tensor:
    """How far the two likeliest classes are apart, none beyond one."""
    top = first_tensor(outputs).flatten(1).topk(2, dim=1).values
    return (1 - (top[:, 0] - top[:, 1])).relu() + 0 * targets["offset"]


LOSSES: dict[str, Any] = {
    "smooth": lambda outputs, _: readout(outputs),
    "labels": labels_of,
    "entropy": "entropy",
    "hinge": hinge,
    "few live": live,
    "saturated": saturated,
    "one entry": one_entry,
    "largest logit": largest,
    "margin": margin,
}


def tokens(length: int, d: int) -> Callable[[int], Batch]:
    def draw(n: int) -> Batch:
        targets = {"label": torch.randint(0, 8, (n,)), "offset": 2 * torch.randn(n)}
        return Batch(torch.randn(n, length, d), targets)

    return draw


SIZES = ((4, 4, 2), (2, 2, 4), (8, 8, 1), (4, 4, 8), (3, 3, 5), (5, 4, 4))


def cases() -> list[Case]:
    """Every body with every reader; losses, sizes and shapes go round."""
    turn = itertools.count()
    out = []
    for body, reader in itertools.product(bodies(4, 4), READERS):
        for loss in itertools.islice(itertools.cycle(LOSSES), k := next(turn), k + 2):
            d, length = ((4, 4), (8, 4), (4, 8), (8, 8))[k // 3 % 4]
            sizes = SIZES[k % len(SIZES)]
            classes = (3, 4, 2)[k % 3]
            out.append(
                Case(
                    f"{body} ({length} x {d}), {reader}, {loss}",
                    "heads",
                    lambda b=body, r=reader, d=d, t=length, c=classes: Read(
                        bodies(d, t)[b](), r, d, t, c
                    ),
                    tokens(length, d),
                    LOSSES[loss],
                    sizes,
                    in_suite=k % 5 == 0,
                )
            )
    return out
