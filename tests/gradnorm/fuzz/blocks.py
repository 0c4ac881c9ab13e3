"""Blocks of a random network: each takes a tensor (n, *shape) and returns one, samples first.

A block is a function from a source of random choices and the shape of a sample to a module and the
new shape; where it has no meaning for that shape it returns None. BLOCKS holds them by name.
"""

# ruff: noqa: E501  (tables, which read better whole)
from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

Shape = tuple[int, ...]
Block = Callable[[random.Random, Shape], "tuple[nn.Module, Shape] | None"]
BLOCKS: dict[str, Block] = {}
WIDTHS = (2, 3, 4, 6, 8)


def block(f: Block) -> Block:
    BLOCKS[f.__name__] = f
    return f


class Do(nn.Module):
    """A function of the tensor and of the modules and parameters given by name."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], **parts: Any):
        super().__init__()
        self.f = f
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / max(1, shape[0]) ** 0.5)


def score(x: Tensor) -> Tensor:
    """A number per row of features by which a network may choose: no two are near each other."""
    return x.detach() @ torch.linspace(1, 2, x.shape[-1]).square().to(x)


def act(r: random.Random) -> Callable[[Tensor], Tensor]:
    return r.choice([torch.tanh, F.relu, F.gelu, torch.sigmoid, F.silu, F.softplus])


@block
def linear(r: random.Random, s: Shape) -> Any:
    out = r.choice((*WIDTHS, s[-1], s[-1]))
    layer = nn.Linear(s[-1], out, bias=r.random() < 0.7)
    f = act(r)
    how = r.choice(["plain", "flattened", "weight", "samples inside", "in halves", "one by one"])

    def run(m: Do, x: Tensor) -> Tensor:
        if how == "plain":
            return f(m.layer(x))
        if how == "flattened":
            return f(m.layer(x.reshape(-1, s[-1]))).view(*x.shape[:-1], out)
        if how == "weight":
            bias = 0 if m.layer.bias is None else m.layer.bias
            return f(x @ m.layer.weight.T + bias)
        if how == "samples inside" and len(s) > 1:
            return f(m.layer(x.transpose(0, 1))).transpose(0, 1)
        if how == "in halves" and len(x) > 1:
            half = len(x) // 2
            return f(torch.cat([m.layer(x[:half]), m.layer(x[half:])]))
        if how == "one by one":
            return f(torch.stack([m.layer(row) for row in x]))
        return f(m.layer(x))

    return Do(run, layer=layer), (*s[:-1], out)


@block
def over_another_dimension(r: random.Random, s: Shape) -> Any:
    if len(s) < 2:
        return None
    dim = r.randrange(1, len(s))
    out = r.choice((*WIDTHS, s[dim - 1]))

    def run(m: Do, x: Tensor) -> Tensor:
        return torch.tanh(m.layer(x.transpose(dim, -1)).transpose(dim, -1))

    return Do(run, layer=nn.Linear(s[dim - 1], out)), (*s[: dim - 1], out, *s[dim:])


@block
def residual(r: random.Random, s: Shape) -> Any:
    return Do(
        lambda m, x: x + m.b(torch.tanh(m.a(x))), a=nn.Linear(s[-1], 4), b=nn.Linear(4, s[-1])
    ), s


@block
def tied_linear(r: random.Random, s: Shape) -> Any:
    times = r.choice([2, 3])
    layer = nn.Linear(s[-1], s[-1])

    def run(m: Do, x: Tensor) -> Tensor:
        for k in range(times):
            weight = m.layer.weight.T if k % 2 else m.layer.weight
            x = torch.tanh(F.linear(x, weight, m.layer.bias))
        return x

    return Do(run, layer=layer), s


@block
def normalisation(r: random.Random, s: Shape) -> Any:
    kind = r.choice(["layer", "whole", "rms", "group", "batch", "instance"])
    if kind == "layer" or (len(s) < 2 and kind in ("group", "instance")):
        return nn.LayerNorm(s[-1], elementwise_affine=r.random() < 0.8), s
    if kind == "whole":
        return nn.LayerNorm(s), s
    if kind == "rms":
        return nn.RMSNorm(s[-1]), s
    if kind == "group":
        return nn.GroupNorm(1 if s[0] % 2 else 2, s[0]), s
    if kind == "instance":
        return (nn.InstanceNorm1d(s[0], affine=True) if len(s) == 2 else nn.InstanceNorm2d(s[0], affine=True)) if len(s) < 4 else nn.Identity(), s  # fmt: skip
    made = nn.BatchNorm1d if len(s) < 3 else nn.BatchNorm2d
    layer = made(s[0])
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 1.5)
    return layer, s


@block
def convolution(r: random.Random, s: Shape) -> Any:
    if len(s) not in (2, 3):
        return None
    groups = 2 if s[0] % 2 == 0 and r.random() < 0.4 else 1
    out = r.choice((2, 4, 6))
    kind = nn.Conv1d if len(s) == 2 else nn.Conv2d
    mode = r.choice(["zeros", "zeros", "circular", "replicate"])
    layer = kind(s[0], out, 3, padding=1, groups=groups, bias=r.random() < 0.6, padding_mode=mode,
                 stride=2 if min(s[1:]) > 4 and r.random() < 0.3 else 1)  # fmt: skip
    with torch.no_grad():
        shape = layer(torch.zeros(1, *s)).shape[1:]
    f = act(r)
    return Do(lambda m, x: f(m.layer(x)), layer=layer), tuple(shape)


@block
def tokens_as_channels(r: random.Random, s: Shape) -> Any:
    """A convolution over the features of tokens that became the batch: (n L, 1, d)."""
    if len(s) != 2:
        return None

    def run(m: Do, x: Tensor) -> Tensor:
        return torch.tanh(m.layer(x.reshape(-1, 1, s[1]))).mean(1).view(x.shape)

    return Do(run, layer=nn.Conv1d(1, 2, 3, padding=1)), s


@block
def recurrent(r: random.Random, s: Shape) -> Any:
    if len(s) != 2:
        return None
    kind, twice, first = r.choice([nn.LSTM, nn.GRU, nn.RNN]), r.random() < 0.4, r.random() < 0.5
    hidden = r.choice((2, 4))
    layer = kind(s[1], hidden, r.choice([1, 2]), batch_first=first, bidirectional=twice)

    def run(m: Do, x: Tensor) -> Tensor:
        return m.layer(x)[0] if first else m.layer(x.transpose(0, 1))[0].transpose(0, 1)

    return Do(run, layer=layer), (s[0], hidden * (1 + twice))


@block
def own_recurrence(r: random.Random, s: Shape) -> Any:
    if len(s) != 2:
        return None

    def run(m: Do, x: Tensor) -> Tensor:
        h, out = torch.zeros(len(x), 4).to(x), []
        for t in range(x.shape[1]):
            h = torch.tanh(m.i(x[:, t]) + m.h(h))
            out.append(h)
        return torch.stack(out, 1)

    return Do(run, i=nn.Linear(s[1], 4), h=nn.Linear(4, 4)), (s[0], 4)


@block
def attention(r: random.Random, s: Shape) -> Any:
    if len(s) != 2 or s[1] % 2:
        return None
    first = r.random() < 0.6
    layer = nn.MultiheadAttention(s[1], 2, batch_first=first)

    def run(m: Do, x: Tensor) -> Tensor:
        y = x if first else x.transpose(0, 1)
        y = m.layer(y, y, y, need_weights=False)[0]
        return x + (y if first else y.transpose(0, 1))

    return Do(run, layer=layer), s


@block
def encoder_layer(r: random.Random, s: Shape) -> Any:
    if len(s) != 2 or s[1] % 2:
        return None
    first = r.random() < 0.7
    layer = nn.TransformerEncoderLayer(
        s[1], 2, 8, dropout=0, batch_first=first, norm_first=r.random() < 0.5
    )

    def run(m: Do, x: Tensor) -> Tensor:
        return m.layer(x) if first else m.layer(x.transpose(0, 1)).transpose(0, 1)

    return Do(run, layer=layer), s


@block
def own_attention(r: random.Random, s: Shape) -> Any:
    if len(s) != 2:
        return None
    d, causal, how = s[1], r.random() < 0.4, r.choice(["einsum", "sdpa", "@"])

    def run(m: Do, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).chunk(3, -1)
        mask = torch.ones(s[0], s[0], dtype=torch.bool).tril() if causal else None
        if how == "sdpa":
            y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], mask)[:, 0]
        else:
            a = torch.einsum("nld,nmd->nlm", q, k) if how == "einsum" else q @ k.transpose(1, 2)
            a = a if mask is None else a.masked_fill(~mask, float("-inf"))
            y = a.softmax(-1) @ v
        return x + m.out(y)

    return Do(run, qkv=nn.Linear(d, 3 * d), out=nn.Linear(d, d)), s


@block
def windows(r: random.Random, s: Shape) -> Any:
    if len(s) != 2 or s[0] % 2:
        return None
    length, d = s
    shift, inside = r.choice([0, 1]), r.random() < 0.5

    def run(m: Do, x: Tensor) -> Tensor:
        n = len(x)
        x = x.roll(shift, 1).view(n, length // 2, 2, d)
        x = x.transpose(0, 1).reshape(-1, 2, d) if inside else x.view(-1, 2, d)
        x = x + m.layer((x @ x.transpose(1, 2)).softmax(-1) @ x)
        x = x.view(length // 2, n, 2, d).transpose(0, 1) if inside else x.view(n, -1, 2, d)
        return x.reshape(n, length, d).roll(-shift, 1)

    return Do(run, layer=nn.Linear(d, d)), s


@block
def chunks(r: random.Random, s: Shape) -> Any:
    dim = r.randrange(1, len(s) + 1)
    if s[dim - 1] % 2:
        return None

    def run(m: Do, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim)
        a, b = m.a(a), m.b(b)
        return torch.cat([b, a] if m.swap else [a, b * a.sigmoid()], dim)

    width = s[-1] // 2 if dim == len(s) else s[-1]
    return Do(run, a=nn.Linear(width, width), b=nn.Linear(width, width), swap=r.random() < 0.5), s


@block
def rearrangement(r: random.Random, s: Shape) -> Any:
    if len(s) == 1:
        for a in (2, 4, 3):
            if s[0] % a == 0 and s[0] > a:
                return Do(lambda m, x, a=a: x.reshape(-1, a, s[0] // a)), (a, s[0] // a)
        return None
    if r.random() < 0.3:
        size = 1
        for k in s:
            size *= k
        return (nn.Flatten(), (size,)) if size <= 64 else None
    order = list(range(len(s)))
    r.shuffle(order)
    return Do(lambda m, x: x.permute(0, *(k + 1 for k in order))), tuple(s[k] for k in order)


@block
def bare_parameter(r: random.Random, s: Shape) -> Any:
    how = r.choice(["add", "times", "token", "position", "expanded", "stacked", "index"])
    if how == "token" and len(s) == 2 and s[0] < 8:
        return Do(
            lambda m, x: torch.cat([m.p.expand(len(x), -1, -1), x], 1), p=parameter(1, 1, s[1])
        ), (s[0] + 1, s[1])
    if how == "times":
        return Do(lambda m, x: x * m.p, p=nn.Parameter(1 + 0.1 * torch.randn(s))), s
    if how == "position":
        return Do(lambda m, x: x + m.p[None], p=parameter(*s)), s
    if how == "expanded":
        return Do(lambda m, x: x * m.p.expand_as(x), p=parameter(*s[-1:])), s
    if how == "stacked":
        return Do(lambda m, x: x + torch.stack([m.p] * len(x)), p=parameter(*s)), s
    if how == "index":
        return Do(lambda m, x: x + m.p[(score(x.flatten(1)) > 0).long()], p=parameter(2, *s)), s
    return Do(lambda m, x: x + m.p, p=parameter(*s[-1:])), s


@block
def einsum(r: random.Random, s: Shape) -> Any:
    if len(s) == 1:
        return Do(
            lambda m, x: torch.einsum("ni,ij,jk->nk", x, m.a, m.b), a=parameter(s[0], 3), b=parameter(3, 4)
        ), (4,)  # fmt: skip
    if len(s) != 2:
        return None
    how = r.choice(["heads", "tokens", "both"])
    length, d = s
    if how == "heads":

        def run(m: Do, x: Tensor) -> Tensor:
            h = torch.einsum("nld,hdk->hnlk", x, m.p)
            return torch.einsum("hnlk,hkd->nld", torch.tanh(h), m.q)

        return Do(run, p=parameter(2, d, 3), q=parameter(2, 3, d)), s  # fmt: skip
    if how == "tokens":
        return Do(
            lambda m, x: torch.einsum("nld,lm->nmd", x, m.p).tanh(), p=parameter(length, length)
        ), s
    return Do(
        lambda m, x: torch.einsum("nld,lde->nle", x, m.p).tanh(), p=parameter(length, d, d)
    ), s


@block
def embedding(r: random.Random, s: Shape) -> Any:
    """Words are the data, put into bins."""
    how = r.choice(["add", "gate", "bag"])
    table = nn.EmbeddingBag(5, s[-1], mode="sum") if how == "bag" else nn.Embedding(5, s[-1])

    def run(m: Do, x: Tensor) -> Tensor:
        words = torch.bucketize(x.detach(), torch.tensor([-1.0, -0.3, 0.3, 1.0]).to(x))
        if how == "bag":
            y = m.table(words.reshape(-1, s[-1])).view(*x.shape)
        else:
            y = m.table(words[..., 0])
        return x * y.sigmoid() if how == "gate" else x + y

    return Do(run, table=table), s


@block
def gate(r: random.Random, s: Shape) -> Any:
    return Do(lambda m, x: x * m.g(x).sigmoid(), g=nn.Linear(s[-1], r.choice([1, s[-1]]))), s


@block
def routing(r: random.Random, s: Shape) -> Any:
    """Experts take the tokens that the data sends them."""
    how = r.choice(["mask", "index", "two best"])
    experts = nn.ModuleList(nn.Linear(s[-1], s[-1]) for _ in range(3))
    router = nn.Linear(s[-1], 3)

    def run(m: Do, x: Tensor) -> Tensor:
        rows = x.reshape(-1, s[-1])
        weights = m.router(rows).softmax(-1)
        best = weights.topk(2 if how == "two best" else 1, dim=-1)
        out = torch.zeros_like(rows)
        for e, expert in enumerate(m.experts):
            where, which = (best.indices == e).nonzero(as_tuple=True)
            if how == "mask":
                mask = best.indices[:, 0] == e
                out[mask] = expert(rows[mask]) * weights[mask, e, None]
            else:
                share = best.values[where, which, None]
                out = out.index_add(0, where, expert(rows[where]) * share)
        return out.view(x.shape)

    return Do(run, experts=experts, router=router), s


@block
def sorted_and_back(r: random.Random, s: Shape) -> Any:
    """Samples in an order that the data gives, as packing by length does, and back."""
    back = r.random() < 0.8

    def run(m: Do, x: Tensor) -> Tensor:
        order = x.detach().flatten(1)[:, 0].argsort()
        y = m.layer(x[order])
        return y[order.argsort()] if back else x + torch.zeros_like(y).index_copy(0, order, y)

    return Do(run, layer=nn.Linear(s[-1], s[-1])), s


@block
def packed(r: random.Random, s: Shape) -> Any:
    if len(s) != 2:
        return None
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    def run(m: Do, x: Tensor) -> Tensor:
        lengths = 1 + (score(x.flatten(1)).abs() * 3).long() % s[0]
        rows = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(m.layer(rows)[0], batch_first=True, total_length=s[0])[0]

    return Do(run, layer=nn.GRU(s[1], 4, batch_first=True)), (s[0], 4)


@block
def reparametrised(r: random.Random, s: Shape) -> Any:
    kind = r.choice(["weight", "spectral", "orthogonal", "lora", "function"])
    layer = nn.Linear(s[-1], s[-1])
    if kind == "weight":
        return Do(lambda m, x: torch.tanh(m.layer(x)), layer=parametrizations.weight_norm(layer)), s
    if kind == "spectral":
        return Do(
            lambda m, x: torch.tanh(m.layer(x)), layer=parametrizations.spectral_norm(layer)
        ), s
    if kind == "orthogonal":
        return parametrizations.orthogonal(layer, orthogonal_map="cayley"), s
    if kind == "lora":
        layer.requires_grad_(False)
        return Do(
            lambda m, x: m.layer(x) + (x @ m.a) @ m.b, layer=layer, a=parameter(s[-1], 2), b=parameter(2, s[-1])
        ), s  # fmt: skip
    return Do(
        lambda m, x: torch.tanh(F.linear(x, m.layer.weight.softmax(1) * m.p.exp(), m.layer.bias)),
        layer=layer, p=nn.Parameter(torch.zeros(1, s[-1])),
    ), s  # fmt: skip


@block
def hypernetwork(r: random.Random, s: Shape) -> Any:
    """Each sample's own weights come from the sample."""

    def run(m: Do, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), -1, s[-1])
        weights = m.layer(rows.mean(1)).view(-1, s[-1], s[-1])
        return (x.reshape(rows.shape) + torch.bmm(rows, weights)).view(x.shape)

    return Do(run, layer=nn.Linear(s[-1], s[-1] ** 2)), s


@block
def graph(r: random.Random, s: Shape) -> Any:
    if len(s) != 2:
        return None

    def run(m: Do, x: Tensor) -> Tensor:
        table = (x.detach() @ x.detach().transpose(1, 2) > 0).to(x)
        table = table / table.sum(-1, keepdim=True).clamp(min=1)
        n, length = x.shape[:2]
        if m.sparse:  # one graph of all samples, with edges within each
            source = torch.arange(n * length).repeat_interleave(2)
            target = source - source % length + (source * 3 + 1) % length
            rows = m.layer(x).reshape(n * length, -1)
            return torch.tanh(
                x + torch.zeros_like(rows).index_add(0, target, rows[source]).view(x.shape)
            )
        return torch.tanh(x + table @ m.layer(x))

    return Do(run, layer=nn.Linear(s[1], s[1]), sparse=r.random() < 0.5), s


class Scale(torch.autograd.Function):
    """Multiplies, with a backward pass written out; the parameter is out of sight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(x, p)
        return x * p

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        x, p = ctx.saved_tensors
        return g * p, (g * x).flatten(0, -2).sum(0)


@block
def out_of_sight(r: random.Random, s: Shape) -> Any:
    how = r.choice(["function", "vmap", "checkpoint", "reentrant", "grad", "hook"])
    if how == "function":
        return Do(lambda m, x: Scale.apply(x, m.p), p=nn.Parameter(torch.ones(s[-1]))), s
    layer = nn.Linear(s[-1], s[-1])
    if how == "vmap":
        return Do(lambda m, x: torch.vmap(lambda row: torch.tanh(m.layer(row)))(x), layer=layer), s
    if how in ("checkpoint", "reentrant"):
        return Do(
            lambda m, x: checkpoint(m.layer, x, use_reentrant=how == "reentrant"), layer=layer
        ), s
    if how == "hook":

        def hooked(m: Do, x: Tensor) -> Tensor:
            y = m.layer(x)
            if y.requires_grad:
                y.register_hook(lambda g: 2 * g)
            return torch.tanh(y)

        return Do(hooked, layer=layer), s  # fmt: skip

    def forces(m: Do, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x if x.requires_grad else x.detach().requires_grad_()
            energy = m.layer(y).sigmoid().sum()
            return x + torch.autograd.grad(energy, y, create_graph=True)[0]

    return Do(forces, layer=layer), s


@block
def complex_step(r: random.Random, s: Shape) -> Any:
    how = r.choice(["@", "einsum", "times"])
    real, imaginary = parameter(s[-1], s[-1]), parameter(s[-1], s[-1])

    def run(m: Do, x: Tensor) -> Tensor:
        z, w = torch.fft.fft(x, dim=-1), torch.complex(m.real, m.imaginary)
        if how == "@":
            z = z @ w
        elif how == "einsum":
            z = torch.einsum("...i,io->...o", z, w)
        else:
            z = z * w[0]
        return torch.fft.ifft(z, dim=-1).real

    return Do(run, real=real, imaginary=imaginary), s


@block
def cut(r: random.Random, s: Shape) -> Any:
    """A branch that gradients do not go through."""
    return Do(lambda m, x: x + m.layer(x).detach().tanh(), layer=nn.Linear(s[-1], s[-1])), s


@block
def in_place(r: random.Random, s: Shape) -> Any:
    def run(m: Do, x: Tensor) -> Tensor:
        y = m.layer(x)
        y[..., 0] = y[..., 0] * 2
        y += 1
        return F.relu(y, inplace=True)

    return Do(run, layer=nn.Linear(s[-1], s[-1])), s


@block
def picked_tokens(r: random.Random, s: Shape) -> Any:
    """Two tokens that the data picks go through a layer of their own."""
    if len(s) != 2 or s[0] < 3:
        return None

    def run(m: Do, x: Tensor) -> Tensor:
        index = score(x).topk(2, dim=1).indices[..., None].expand(-1, -1, s[1])
        return x.scatter_add(1, index, torch.tanh(m.layer(x.gather(1, index))))

    return Do(run, layer=nn.Linear(s[1], s[1])), s
