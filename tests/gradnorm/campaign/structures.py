"""Networks put together in unusual ways, as research code does; most mix nothing."""

# ruff: noqa: E501  (tables, which read better whole)
from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from campaign.case import Batch, Case, readout, vectors

Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Parts by name, and a forward pass that is a function of them."""

    def __init__(self, forward: Forward, **parts: Any):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def weights(*shape: int, complex_: bool = False) -> nn.Parameter:
    kind = torch.complex128 if complex_ else torch.float64
    return nn.Parameter(torch.randn(*shape, dtype=kind) / max(1, shape[0]) ** 0.5)


class Times(torch.autograd.Function):
    """A product with a backward pass written out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        x, w = ctx.saved_tensors
        return g @ w.T, x.flatten(0, -2).T @ g.flatten(0, -2)


class StraightThrough(torch.autograd.Function):
    """Signs, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g


class Reversed(torch.autograd.Function):
    """Gradient reversal, as in domain adaptation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return -0.5 * g


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w + w.T


def energy(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.tanh(m.a(x)))


def forces(m: Any, x: Tensor, *, enabled: bool, detached: bool, both: bool) -> Tensor:
    with torch.set_grad_enabled(enabled or torch.is_grad_enabled()):
        x = x.detach().requires_grad_() if detached else x
        x = x if x.requires_grad else x.requires_grad_()
        e = energy(m, x)
        f = -torch.autograd.grad(e.sum(), x, create_graph=True)[0]
    return torch.cat([e, f], 1) if both else f


def per_sample_forces(m: Any, x: Tensor) -> Tensor:
    return vmap(grad(lambda row: energy(m, row)[0]))(x)


def divergence(m: Any, x: Tensor) -> Tensor:
    """The trace of the Jacobian, as continuous flows have it."""
    f = lambda row: m.b(torch.tanh(m.a(row)))  # noqa: E731
    return vmap(jacrev(f))(x).diagonal(dim1=1, dim2=2)


def tangent(m: Any, x: Tensor) -> Tensor:
    f = lambda y: m.b(torch.tanh(m.a(y)))  # noqa: E731
    return jvp(f, (x,), (torch.ones_like(x),))[1]


def inner_step(m: Any, x: Tensor) -> Tensor:
    """A gradient step on each sample's own inner loss, as meta-learning takes it."""
    w = dict(m.a.named_parameters())

    def own(row: Tensor) -> Tensor:
        inner = lambda p: functional_call(m.a, p, (row,)).square().mean()  # noqa: E731
        steps = grad(inner)(w)
        return functional_call(m.a, {k: w[k] - 0.1 * steps[k] for k in w}, (row,))

    return vmap(own)(x)


def equilibrium(m: Any, x: Tensor) -> Tensor:
    """A fixed point whose gradient is found by a fixed point in a hook."""
    u = m.u(x)
    step = lambda z: torch.tanh(0.3 * m.w(z) + u)  # noqa: E731
    with torch.no_grad():
        z = torch.zeros_like(u)
        for _ in range(40):
            z = step(z)
    z = step(z)
    z0 = z.detach().clone().requires_grad_()
    f0 = step(z0)

    def solve(g: Tensor) -> Tensor:
        v = g
        for _ in range(40):
            v = torch.autograd.grad(f0, z0, v, retain_graph=True)[0] + g
        return v

    if z.requires_grad:
        z.register_hook(solve)
    return m.o(z)


def unrolled(m: Any, x: Tensor) -> Tensor:
    u, z = m.u(x), torch.zeros(len(x), 4).to(x)
    for _ in range(5):
        z = torch.tanh(m.w(z) + u)
    return z


def scattered_graph(m: Any, x: Tensor) -> Tensor:
    """Messages along edges of one graph made of all samples' graphs."""
    n, nodes, d = x.shape
    start = torch.arange(n).repeat_interleave(nodes) * nodes
    source = torch.arange(n * nodes)
    target = start + (source * 3 + 1) % nodes
    rows = x.reshape(-1, d)
    for layer in (m.a, m.b):
        messages = layer(torch.cat([rows[source], rows[target]], 1))
        rows = torch.tanh(rows + torch.zeros_like(rows).index_add(0, target, messages))
    owner = torch.arange(n).repeat_interleave(nodes)
    return torch.zeros(n, d).to(x).index_add(0, owner, rows)


def block_diagonal(m: Any, x: Tensor) -> Tensor:
    """A sparse product over all samples' nodes at once."""
    n, nodes, d = x.shape
    rows = torch.arange(n * nodes)
    pairs = torch.stack([rows, rows - rows % nodes + (rows + 1) % nodes])
    table = torch.sparse_coo_tensor(pairs, torch.ones(n * nodes).to(x), (n * nodes,) * 2)
    return torch.tanh(torch.sparse.mm(table, m.a(x).reshape(-1, d))).view(x.shape).flatten(1)


def spectral(m: Any, x: Tensor, how: str) -> Tensor:
    z = torch.fft.rfft(m.a(x), dim=-1)
    if how == "@":
        z = z @ m.w
    elif how == "einsum":
        z = torch.einsum("ni,io->no", z, m.w)
    elif how == "linear":
        z = F.linear(z, m.w)
    elif how == "conjugate":
        z = z @ m.w.conj().T
    else:
        z = z * m.w[0]
    return torch.fft.irfft(z, n=4, dim=-1)


def own_autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return m.b(F.relu(m.a(x))).float()


def adapters(m: Any, x: Tensor) -> Tensor:
    """Low-rank updates of a frozen layer, with three factors in one einsum."""
    return m.base(x) + 0.5 * torch.einsum("ni,ir,ro->no", x, m.down, m.up)


def hyper(m: Any, x: Tensor) -> Tensor:
    w = m.make(x).view(-1, 4, 4)
    return torch.einsum("ni,nij->nj", torch.tanh(m.a(x)), w)


def attention_pool(m: Any, x: Tensor) -> Tensor:
    return torch.einsum("nl,nld->nd", (m.a(x) @ m.q).softmax(1), x)


def prototypes(m: Any, x: Tensor) -> Tensor:
    return -torch.cdist(m.a(x), m.p).square()


def codebook(m: Any, x: Tensor) -> Tensor:
    """Vector quantisation: the nearest code, with straight-through gradients."""
    h = m.a(x)
    code = m.p[torch.cdist(h, m.p).argmin(1)]
    return m.b(h + (code - h).detach()) + code


def dotted(m: Any, x: Tensor) -> Tensor:
    return torch.stack([torch.dot(row, m.w) for row in x])[:, None] + m.a(x)


def looped(m: Any, x: Tensor) -> Tensor:
    """Each sample by itself, as many times as it asks for."""
    out = []
    for row in x:
        for _ in range(1 + int(row.abs().sum() * 3) % 3):
            row = torch.tanh(m.a(row))
        out.append(row)
    return torch.stack(out)


def early_exit(m: Any, x: Tensor) -> Tensor:
    """Samples leave when they are sure."""
    h = torch.tanh(m.a(x))
    out = torch.zeros(len(x), 4).to(x)
    sure = h.detach()[:, 0] > 0
    out[sure] = m.b(h[sure])
    if not bool(sure.all()):
        out[~sure] = m.c(torch.tanh(m.b(h[~sure])))
    return out


def gathered_rows(m: Any, x: Tensor) -> Tensor:
    order = x.detach()[:, 0].argsort()
    h = torch.tanh(m.a(x[order]))
    return m.b(h)[order.argsort()]


def transposed_tokens(m: Any, x: Tensor) -> Tensor:
    h = m.a(x.transpose(0, 1))
    return m.b(torch.tanh(h)).transpose(0, 1)[:, -1]


def batch_inside(m: Any, x: Tensor) -> Tensor:
    """Samples last: (d, n)."""
    return (m.w @ torch.tanh(m.v @ x.T)).T


def samples_as_channels(m: Any, x: Tensor) -> Tensor:
    """A grouped convolution with one group per sample."""
    n, c, length = x.shape
    w = m.w.repeat(n, 1, 1)
    return F.conv1d(x.reshape(1, n * c, length), w, groups=n, padding=1).view(n, -1, length)


def unfolded(m: Any, x: Tensor) -> Tensor:
    patches = F.unfold(x, 2)
    return m.a(patches.transpose(1, 2)).flatten(1)


def counted(m: Any, x: Tensor) -> Tensor:
    m.step += 1
    return m.a(x) * (1 + m.step)


def cached(m: Any, x: Tensor) -> Tensor:
    """Keeps a value computed from weights, until the weights change."""
    with parametrize.cached():
        return m.a(torch.tanh(m.a(x)))


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))


def traced() -> nn.Module:
    return torch.jit.trace(nn.Linear(4, 4).double(), torch.randn(2, 4).double(), check_trace=False)


def shared_noise(m: Any, x: Tensor) -> Tensor:
    """Noise of a generator of its own: the same for every sample."""
    noise = torch.randn(4, generator=torch.Generator().manual_seed(0)).to(x)
    return m.a(x + noise)


def entries() -> dict[str, tuple[Callable[[], nn.Module], Callable[[int], Batch], dict[str, Any]]]:
    """Name -> network, batch, and fields of the case."""
    L = nn.Linear
    out: dict[str, Any] = {}

    def add(name: str, forward: Forward, parts: Callable[[], dict[str, Any]],
            batch: Any = None, **fields: Any) -> None:  # fmt: skip
        out[name] = (lambda: Net(forward, **parts()), batch or vectors(4), fields)

    two = lambda: {"a": L(4, 4), "b": L(4, 4)}  # noqa: E731
    for enabled, detached, both in itertools.product((True, False), repeat=3):
        add(f"forces, enable_grad {enabled}, detached {detached}, energy too {both}",
            lambda m, x, e=enabled, d=detached, b=both: forces(m, x, enabled=e, detached=d, both=b),
            lambda: {"a": L(4, 4), "b": L(4, 1)})  # fmt: skip
    add("forces by torch.func", per_sample_forces, lambda: {"a": L(4, 4), "b": L(4, 1)})
    add("divergence by jacrev", divergence, two)
    add("tangent by jvp", tangent, two)
    add("an inner gradient step", inner_step, lambda: {"a": L(4, 4)})
    add("vmap of a layer", lambda m, x: vmap(m.a)(x), lambda: {"a": L(4, 4)})
    add("equilibrium with a hook", equilibrium,
        lambda: {"w": L(4, 4), "u": L(4, 4), "o": L(4, 3)})  # fmt: skip
    add("unrolled fixed point", unrolled, lambda: {"w": L(4, 4), "u": L(4, 4)})
    add("graph by index_add", scattered_graph, lambda: {"a": L(8, 4), "b": L(8, 4)}, vectors(4, 4))
    add("graph by a sparse product", block_diagonal, lambda: {"a": L(4, 4)}, vectors(4, 4))
    for how in ("@", "einsum", "linear", "conjugate", "times"):
        add(f"complex weights, {how}", lambda m, x, h=how: spectral(m, x, h),
            lambda: {"a": L(4, 4), "w": weights(3, 3, complex_=True)})  # fmt: skip
    add("complex, stacked layers",
        lambda m, x: torch.view_as_real((x.to(m.w) @ m.w) @ m.v).flatten(1),
        lambda: {"w": weights(4, 4, complex_=True), "v": weights(4, 4, complex_=True)})  # fmt: skip
    add("autocast inside", own_autocast, lambda: {"a": L(4, 8), "b": L(8, 3)},
        tolerance=0.1, double=False)  # fmt: skip
    add("adapters", adapters,
        lambda: {"base": L(4, 4).requires_grad_(False), "down": weights(4, 2), "up": weights(2, 4)})  # fmt: skip
    add("hypernetwork", hyper, lambda: {"make": L(4, 16), "a": L(4, 4)})
    add("attention pool", attention_pool, lambda: {"a": L(4, 4), "q": weights(4)}, vectors(4, 4))
    add("prototypes", prototypes, lambda: {"a": L(4, 4), "p": weights(4, 4)})
    add("codebook", codebook, lambda: {"a": L(4, 4), "b": L(4, 4), "p": weights(4, 4)})
    add("dot products", dotted, lambda: {"a": L(4, 4), "w": weights(4)})
    add("a loop of its own length", looped, lambda: {"a": L(4, 4)})
    add("early exit", early_exit, lambda: {**two(), "c": L(4, 4)})
    add("sorted, and back", gathered_rows, two)
    add("tokens first", transposed_tokens, two, vectors(4, 4))
    add("samples last", batch_inside, lambda: {"w": weights(4, 4), "v": weights(4, 4)})
    add("a group per sample", samples_as_channels, lambda: {"w": weights(3, 4, 3)}, vectors(4, 4))
    add("unfolded patches", unfolded, lambda: {"a": L(8, 4)}, vectors(2, 4, 4))
    add("a counter", counted, lambda: {"a": L(4, 4), "step": torch.zeros(())}, stateful=True)
    add("parametrisations in a cache", cached,
        lambda: {"a": parametrised()})  # fmt: skip
    add("noise that is the same for all", shared_noise, lambda: {"a": L(4, 4)})
    add("custom product", lambda m, x: Times.apply(torch.tanh(Times.apply(x, m.w)), m.v),
        lambda: {"w": weights(4, 4), "v": weights(4, 4)})  # fmt: skip
    add("custom product of tokens", lambda m, x: Times.apply(torch.tanh(m.a(x)), m.w).mean(1),
        lambda: {"a": L(4, 4), "w": weights(4, 4)}, vectors(4, 4))  # fmt: skip
    add("straight-through", lambda m, x: m.b(StraightThrough.apply(m.a(x))), two)
    add("gradient reversal", lambda m, x: m.b(Reversed.apply(m.a(x))), two)
    for reentrant in (False, True):
        add(f"checkpoint, reentrant {reentrant}",
            lambda m, x, r=reentrant: m.b(checkpoint(m.a, m.c(x), use_reentrant=r)),
            lambda: {**two(), "c": L(4, 4)})  # fmt: skip
    add("script", lambda m, x: m.b(m.s(x)), lambda: {"s": scripted(), "b": L(4, 3)})
    add("trace", lambda m, x: m.b(m.s(x)), lambda: {"s": traced(), "b": L(4, 3)})
    add("script below batch norm and attention", scripted_normalised,
        lambda: {"c": nn.Conv2d(2, 6, 1), "n": nn.BatchNorm2d(6), "l": torch.jit.script(L(6, 3))},
        vectors(2, 4, 4))  # fmt: skip
    for n, frozen in itertools.product((True, False), (True, False)):
        add(f"normalisation, permuted, batch {n}, frozen {frozen}", permuted_normalisation,
            lambda n=n, f=frozen: {
                "a": nn.Conv2d(2, 4, 1),
                "n": (nn.BatchNorm2d(4) if n else nn.InstanceNorm2d(4, affine=True))
                .requires_grad_(not f), "b": L(4, 3),
            }, vectors(2, 4, 4), sizes=(1, 4, 1))  # fmt: skip
    add("a hook that doubles", lambda m, x: m.b(hooked(m.a(x), lambda g: 2 * g)), two)
    add(
        "a hook that clips all", lambda m, x: m.b(hooked(m.a(x), lambda g: g / (1 + g.norm()))), two
    )
    add("a hook that clips values", lambda m, x: m.b(hooked(m.a(x), lambda g: g.clamp(-0.1, 0.1))), two)  # fmt: skip
    add("class weights among the inputs", lambda m, x, w: m.a(x) * w, lambda: {"a": L(4, 4)},
        lambda n: Batch((torch.randn(n, 4), torch.rand(4)), shared=(1,)), sizes=(3, 3, 5))  # fmt: skip
    add("a mask of tokens among the inputs",
        lambda m, x, mask: m.a(x, x, x, attn_mask=mask)[0],
        lambda: {"a": nn.MultiheadAttention(4, 2, batch_first=True)},
        lambda n: Batch((torch.randn(n, 5, 4), torch.zeros(5, 5).double()), shared=(1,)),
        sizes=(3, 4, 6))  # fmt: skip
    add("cut off", lambda m, x: m.a(x).detach(), lambda: {"a": L(4, 4)})
    add("cut off in part", lambda m, x: m.a(x).detach() + m.b(x), two)
    add("a buffer cast to the sample's type", lambda m, x: F.linear(x, m.w @ m.p.to(x)),
        lambda: {"w": weights(4, 4), "p": torch.eye(4)})  # fmt: skip
    add("stacks of a parameter", lambda m, x: torch.tanh(m.a(x)[:, None] * torch.stack([m.t] * len(x))),
        lambda: {"a": L(4, 4), "t": weights(3, 4)})  # fmt: skip
    add("writes into its output", written, two)
    add("a parameter indexed by words", lambda m, i: m.p[i].mean(1), lambda: {"p": weights(6, 4)},
        lambda n: Batch(torch.randint(0, 6, (n, 4))))  # fmt: skip
    add("a word table at both ends", lambda m, i: F.linear(torch.tanh(m.a(m.e(i))), m.e.weight)[:, -1],
        lambda: {"e": nn.Embedding(6, 4), "a": L(4, 4)}, lambda n: Batch(torch.randint(0, 6, (n, 4))))  # fmt: skip
    return out


def hooked(x: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
    if x.requires_grad:
        x.register_hook(hook)
    return torch.tanh(x)


def written(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros(len(x), 4).to(x)
    out[:, :2] = m.a(x)[:, :2]
    out[:, 2:] += m.b(x)[:, 2:]
    return out


def parametrised() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer


def permuted_normalisation(m: Any, x: Tensor) -> Tensor:
    h = m.n(m.a(x)).flatten(2).transpose(1, 2)
    return m.b((h @ h.transpose(1, 2)).softmax(-1) @ h).mean(1)


def scripted_normalised(m: Any, x: Tensor) -> Tensor:
    h = m.n(m.c(x)).flatten(2).transpose(1, 2)
    return m.l((h @ h.transpose(1, 2)).softmax(-1) @ h).mean(1)


def cases() -> list[Case]:
    sizes = ((4, 4, 3), (1, 4, 4), (2, 2, 5), (8, 8, 1), (3, 3, 4))
    out = []
    for k, (name, (make, batch, fields)) in enumerate(entries().items()):
        fields = {"sizes": sizes[k % 5], **fields}
        out.append(Case(name, "structures", make, batch, readout, **fields))
    return out
