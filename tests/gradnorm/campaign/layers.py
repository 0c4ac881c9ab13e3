"""Every layer of torch.nn that has parameters, with the options that are seldom used."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

from campaign.case import Batch, Case, vectors


class Take(nn.Module):
    """A layer between a first and a last one, and what part of its output is read."""

    def __init__(self, layer: nn.Module, read: Callable[[Any], Tensor] = lambda y: y):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.1))
        self.layer, self.read = layer, read

    def forward(self, *x: Tensor) -> Tensor:
        first, *rest = x
        first = first * self.scale if first.is_floating_point() else first
        y = self.read(self.layer(first, *rest))
        return torch.tanh(y) if not y.is_complex() else y


def randomised(layer: nn.Module) -> nn.Module:
    """Running statistics that are neither 0 nor 1."""
    for name, buffer in layer.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return layer


Entry = tuple[str, Callable[[], nn.Module], Callable[[int], Batch]]


def convolutions() -> Iterator[Entry]:
    options: list[dict[str, Any]] = [
        {},
        {"stride": 2},
        {"padding": 2},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"groups": 4},
        {"groups": 4, "bias": False, "padding": 1},
        {"bias": False},
        {"padding": "same"},
        {"padding": "valid"},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": 2, "padding_mode": "replicate", "stride": 2},
        {"stride": 3, "padding": 1, "dilation": 2},
        {"stride": 2, "groups": 2, "padding": 1, "dilation": 1},
    ]
    for (dim, size), (k, o), kernel in itertools.product(
        ((1, 7), (2, 6), (3, 5)), enumerate(options), (3, 1, 2)
    ):
        if kernel != 3 and k % 3 != kernel % 3:
            continue
        if "groups" in o and o["groups"] == 4 and kernel == 2:
            continue
        kind = getattr(nn, f"Conv{dim}d")
        if (kernel == 1 and o.get("padding_mode")) or (size < 2 * kernel and o.get("dilation")):
            continue
        yield (
            f"Conv{dim}d kernel {kernel}, {o}",
            lambda c=kind, k=kernel, o=o: c(4, 4, k, **o),
            vectors(4, *[size] * dim),
        )
    transposed: list[dict[str, Any]] = [
        {},
        {"stride": 2},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"groups": 2, "bias": False},
        {"dilation": 2},
        {"stride": 3, "padding": 2, "groups": 4},
    ]
    for (dim, size), o in itertools.product(((1, 6), (2, 4), (3, 3)), transposed):
        kind = getattr(nn, f"ConvTranspose{dim}d")
        yield (
            f"ConvTranspose{dim}d {o}",
            lambda c=kind, o=o: c(4, 4, 3, **o),
            vectors(4, *[size] * dim),
        )
    yield "Conv2d (3, 1), stride (1, 2)", lambda: nn.Conv2d(4, 2, (3, 1), (1, 2)), vectors(4, 4, 4)
    yield "Conv2d, one channel", lambda: nn.Conv2d(1, 3, 3), vectors(1, 5, 5)
    yield "Conv1d as wide as its input", lambda: nn.Conv1d(4, 4, 4), vectors(4, 4)


def recurrences() -> Iterator[Entry]:
    def first(y: Any) -> Tensor:
        return y[0]

    def state(y: Any) -> Tensor:
        h = y[1][0] if isinstance(y[1], tuple) else y[1]
        return h.transpose(0, 1).flatten(1)

    def cell(y: Any) -> Tensor:
        return y[1][1].transpose(0, 1).flatten(1)

    for kind, layers, two, bias, batch_first in itertools.product(
        ("LSTM", "GRU", "RNN"), (1, 2), (False, True), (True, False), (True, False)
    ):
        read = first if batch_first else (lambda y: y[0].transpose(0, 1))

        class Turned(nn.Module):
            def __init__(self, rnn: nn.Module, turn: bool):
                super().__init__()
                self.rnn, self.turn = rnn, turn

            def forward(self, x: Tensor) -> Any:
                return self.rnn(x.transpose(0, 1) if self.turn else x)

        def make(
            k: str = kind, n: int = layers, t: bool = two, b: bool = bias, f: bool = batch_first,
            r: Any = read, turned: Any = Turned,
        ) -> nn.Module:  # fmt: skip
            rnn = getattr(nn, k)(4, 4, n, bias=b, batch_first=f, bidirectional=t)
            return Take(turned(rnn, not f), r)

        yield (
            f"{kind}, layers {layers}, both ways {two}, bias {bias}, batch first {batch_first}",
            make,
            vectors(4, 4),
        )
    for kind in ("LSTM", "GRU", "RNN"):
        make = lambda k=kind: Take(getattr(nn, k)(4, 4, 2, batch_first=True), state)  # noqa: E731
        yield f"{kind}, last state", make, vectors(4, 4)
    yield "LSTM, last cell", lambda: Take(nn.LSTM(4, 4, batch_first=True), cell), vectors(4, 4)
    yield (
        "LSTM, projected",
        lambda: Take(nn.LSTM(4, 4, proj_size=2, batch_first=True), first),
        vectors(4, 4),
    )
    yield (
        "RNN, relu",
        lambda: Take(nn.RNN(4, 4, nonlinearity="relu", batch_first=True), first),
        vectors(4, 4),
    )
    for kind in ("GRUCell", "RNNCell"):
        yield kind, lambda k=kind: Take(getattr(nn, k)(4, 4)), vectors(4)
    yield "LSTMCell", lambda: Take(nn.LSTMCell(4, 4), lambda y: torch.cat(y, 1)), vectors(4)


def normalisations() -> Iterator[Entry]:
    for dim, size in ((1, 4), (2, 4), (3, 3)):
        batch = vectors(4, *[size] * dim)
        for affine in (True, False):
            yield (
                f"BatchNorm{dim}d, affine {affine}",
                lambda d=dim, a=affine: randomised(getattr(nn, f"BatchNorm{d}d")(4, affine=a)),
                batch,
            )
        for stats in (True, False):
            yield (
                f"InstanceNorm{dim}d, statistics {stats}",
                lambda d=dim, s=stats: randomised(
                    getattr(nn, f"InstanceNorm{d}d")(4, affine=True, track_running_stats=s)
                ),
                batch,
            )
        for groups in (1, 2, 4):
            yield f"GroupNorm({groups}), {dim}d", lambda g=groups: nn.GroupNorm(g, 4), batch
    yield "BatchNorm1d of vectors", lambda: randomised(nn.BatchNorm1d(4)), vectors(4)
    for shape, affine, bias in itertools.product(((4,), (4, 4)), (True, False), (True, False)):
        yield (
            f"LayerNorm{shape}, affine {affine}, bias {bias}",
            lambda s=shape, a=affine, b=bias: nn.LayerNorm(s, elementwise_affine=a, bias=b),
            vectors(4, 4),
        )
        yield (
            f"RMSNorm{shape}, affine {affine}, {bias}",
            lambda s=shape, a=affine: nn.RMSNorm(s, elementwise_affine=a),
            vectors(4, 4),
        )


def words(*shape: int, most: int = 6) -> Callable[[int], Batch]:
    return lambda n: Batch(torch.randint(0, most, (n, *shape)))


def tables() -> Iterator[Entry]:
    for o in ({}, {"padding_idx": 0}, {"max_norm": 1.0}, {"sparse": True}, {"padding_idx": 5}):
        yield f"Embedding {o}", lambda o=o: Take(nn.Embedding(6, 4, **o)), words(4)
        yield f"Embedding of one word {o}", lambda o=o: Take(nn.Embedding(6, 4, **o)), words()
        yield f"Embedding of (4, 2) {o}", lambda o=o: Take(nn.Embedding(6, 4, **o)), words(4, 2)
    for mode, pad in itertools.product(("sum", "mean", "max"), (None, 0)):
        yield (
            f"EmbeddingBag {mode}, padding {pad}",
            lambda m=mode, p=pad: Take(nn.EmbeddingBag(6, 4, mode=m, padding_idx=p)),
            words(4),
        )


def rest() -> Iterator[Entry]:
    for bias in (True, False):
        for shape in ((4,), (4, 4), (2, 3, 4)):
            yield (
                f"Linear of {shape}, bias {bias}",
                lambda b=bias: nn.Linear(4, 4, bias=b),
                vectors(*shape),
            )
    yield "Linear to one", lambda: nn.Linear(4, 1), vectors(4)
    yield "PReLU, one", nn.PReLU, vectors(4, 4)
    yield "PReLU, channels", lambda: nn.PReLU(4), vectors(4, 4)
    yield "PReLU of vectors", lambda: nn.PReLU(4), vectors(4)
    two = lambda n: Batch((torch.randn(n, 4), torch.randn(n, 4)))  # noqa: E731
    three = lambda n: Batch((torch.randn(n, 4, 4), torch.randn(n, 4, 4)))  # noqa: E731
    yield "Bilinear", lambda: nn.Bilinear(4, 4, 4), two
    yield "Bilinear of tokens", lambda: nn.Bilinear(4, 4, 4, bias=False), three
    options: tuple[dict[str, Any], ...] = (
        {}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True},
        {"kdim": 4, "vdim": 4}, {"kdim": 6, "vdim": 2},
    )  # fmt: skip
    for o, first in itertools.product(options, (True, False)):

        class Attend(nn.Module):
            def __init__(self, o: dict[str, Any], first: bool):
                super().__init__()
                self.a, self.first = nn.MultiheadAttention(4, 2, batch_first=first, **o), first

            def forward(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
                if self.first:
                    return self.a(x, k, v)[0]
                return self.a(*(t.transpose(0, 1) for t in (x, k, v)))[0].transpose(0, 1)

        width = (o.get("kdim", 4), o.get("vdim", 4))
        yield (
            f"MultiheadAttention {o}, batch first {first}",
            lambda o=o, f=first, c=Attend: c(o, f),
            lambda n, w=width: Batch(
                (torch.randn(n, 4, 4), torch.randn(n, 4, w[0]), torch.randn(n, 4, w[1]))
            ),
        )
    for norm_first, first in itertools.product((True, False), (True, False)):

        class Both(nn.Module):
            def __init__(self, norm_first: bool, first: bool):
                super().__init__()
                self.t = nn.Transformer(
                    4, 2, 1, 1, 8, dropout=0, norm_first=norm_first, batch_first=first
                )
                self.first = first

            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                if self.first:
                    return self.t(x, y)[:, -1]
                return self.t(x.transpose(0, 1), y.transpose(0, 1))[-1]

        yield (
            f"Transformer, norm first {norm_first}, batch first {first}",
            lambda a=norm_first, b=first, c=Both: c(a, b),
            three,
        )
    yield (
        "AdaptiveLogSoftmax, log_prob",
        lambda: Adaptive(),
        vectors(8),
    )
    for name, wrap in {
        "weight_norm": parametrizations.weight_norm,
        "weight_norm, dim 1": lambda m: parametrizations.weight_norm(m, dim=1),
        "weight_norm, no dim": lambda m: parametrizations.weight_norm(m, dim=None),
        "spectral_norm": parametrizations.spectral_norm,
        "old spectral_norm": nn.utils.spectral_norm,
        "orthogonal": lambda m: parametrizations.orthogonal(m) if m.weight.dim() == 2 else m,
    }.items():
        yield f"{name}, Linear", lambda w=wrap: w(nn.Linear(4, 4)), vectors(4, 4)
        if name != "orthogonal":
            yield f"{name}, Conv2d", lambda w=wrap: w(nn.Conv2d(4, 4, 3)), vectors(4, 4, 4)
    yield "old weight_norm", lambda: weight_norm(nn.Linear(4, 4)), vectors(4)


class Adaptive(nn.Module):
    """The log-probabilities of nn.AdaptiveLogSoftmaxWithLoss."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.AdaptiveLogSoftmaxWithLoss(8, 10, [4, 7])

    def forward(self, x: Tensor) -> Tensor:
        return self.a.log_prob(x)


SIZES = ((4, 4, 3), (2, 2, 4), (1, 3, 3), (8, 8, 1), (5, 5, 4))


def cases() -> list[Case]:
    entries = itertools.chain(convolutions(), recurrences(), normalisations(), tables(), rest())
    out = []
    for k, (name, make, batch) in enumerate(entries):

        def model(make: Callable[[], nn.Module] = make) -> nn.Module:
            layer = make()
            return layer if isinstance(layer, Take) else Take(layer)

        out.append(
            Case(name, "layers", model, batch, sizes=SIZES[k % 5],
                 stateful="spectral" in name, in_suite=k % 4 == 0)
        )  # fmt: skip
    return out
