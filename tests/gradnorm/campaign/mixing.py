"""Models and losses that mix samples, somewhere and sometimes: only a refusal is right then."""

# ruff: noqa: PERF401  (one append per case, as in the other families)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from campaign.case import Batch, Case, readout, vectors


def batch_attention(h: Tensor) -> Tensor:
    return (h @ h.T).softmax(1) @ h


def last_looks_at_first(h: Tensor) -> Tensor:
    return torch.cat([h[:-1], h[-1:] + h[:1]]) if len(h) > 1 else h


def second_of_three(h: Tensor) -> Tensor:
    return torch.cat([h[:1], h[1:2] * h[2:3].sigmoid(), h[2:]]) if len(h) > 2 else h


def if_large(h: Tensor) -> Tensor:
    """Mixes batches in which some activation is large."""
    return h - h.mean(0) if bool(h.detach().max() > 1.2) else h


def large_rows(h: Tensor) -> Tensor:
    """Centres those rows alone that are large."""
    mask = h.detach().norm(dim=1) > 1.5
    return torch.where(mask[:, None], h - h[mask].mean(0) if mask.any() else h, h)


def neighbours(h: Tensor) -> Tensor:
    """Adds the nearest other sample, as memories of prototypes do."""
    if len(h) == 1:
        return h
    far = torch.cdist(h, h).detach() + 1e9 * torch.eye(len(h)).to(h)
    return h + 0.3 * h[far.argmin(1)]


def in_order(h: Tensor) -> Tensor:
    """Sorts the batch by data and leaves it sorted."""
    return h[h.detach()[:, 0].argsort()]


def entries_in_order(h: Tensor) -> Tensor:
    return h.sort(dim=0).values


def even_batches(h: Tensor) -> Tensor:
    """Reads pairs of samples as one."""
    return h.view(-1, 2, h.shape[1]).flip(1).reshape(h.shape) if len(h) % 2 == 0 else h


def quiet_statistics(h: Tensor) -> Tensor:
    """Statistics of the batch that no gradient goes through."""
    return (h - h.detach().mean(0)) / (h.detach().std(0, unbiased=False) + 1)


def gradient_alone(h: Tensor) -> Tensor:
    """The same outputs, and gradients that look at the batch."""
    return h + (h.mean(0) - h.mean(0).detach())


class Centred(torch.autograd.Function):
    """Changes gradients alone: takes the batch's mean from each."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g - g.mean(0)


def clipped_in_a_hook(h: Tensor) -> Tensor:
    """Scales gradients by their norm: right for one loss, and not for a sum of losses."""
    if h.requires_grad:
        h.register_hook(lambda g: g / (1 + g.norm()))
    return h


def weak(h: Tensor) -> Tensor:
    """Adds a thousandth of the neighbour."""
    return h + 1e-3 * h.roll(1, 0)


def largest_of_batch(h: Tensor) -> Tensor:
    return h / h.abs().max()


def capacity(h: Tensor) -> Tensor:
    """An expert of two seats: who sits depends on who else is there."""
    seats = h.detach()[:, 0].topk(min(2, len(h))).indices
    out = h.clone()
    out[seats] = torch.tanh(2 * h[seats])
    return out


def by_as_many_rows(h: Tensor) -> Tensor:
    """Weights by the number of samples, as a mean over the batch does."""
    return h / len(h)


def batch_norm(h: Tensor) -> Tensor:
    return F.batch_norm(h, None, None, training=True) if len(h) > 1 else h


def softmax_over_batch(h: Tensor) -> Tensor:
    return h.softmax(0)


def running_total(h: Tensor) -> Tensor:
    """Sums along the batch: the first sample sees itself alone."""
    return h.cumsum(0)


def backward_total(h: Tensor) -> Tensor:
    """The last sample sees itself alone."""
    return h.flip(0).cumsum(0).flip(0)


def as_one_sequence(h: Tensor) -> Tensor:
    """The batch is read as a sequence by a convolution."""
    return F.avg_pool1d(h.T[None], 3, 1, 1)[0].T


def shuffled(h: Tensor) -> Tensor:
    """Features of two samples change places if the first is larger."""
    if len(h) < 2 or bool(h[0, 0] < h[1, 0]):
        return h
    return torch.cat([torch.cat([h[:2, :1].flip(0), h[:2, 1:]], 1), h[2:]])


STEPS: dict[str, Callable[[Tensor], Tensor]] = {
    f.__name__.replace("_", " "): f
    for f in (
        batch_attention, last_looks_at_first, second_of_three, if_large, large_rows, neighbours,
        in_order, entries_in_order, even_batches, quiet_statistics, gradient_alone, Centred.apply,
        clipped_in_a_hook, weak, largest_of_batch, capacity, by_as_many_rows, batch_norm,
        softmax_over_batch, running_total, backward_total, as_one_sequence, shuffled,
    )
    if hasattr(f, "__name__")
}  # fmt: skip
STEPS["gradients centred"] = Centred.apply


class With(nn.Module):
    """A step between layers: after the first, after the second, or at the outputs."""

    def __init__(self, step: Callable[[Tensor], Tensor], place: int):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)])
        self.step, self.place = step, place

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = self.step(x) if i == self.place else x
            x = torch.tanh(x) if i < 2 else x
        return x


class OnInputs(With):
    """The step looks at inputs alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.step(x))


class Bank(nn.Module):
    """Remembers what it has seen; each batch looks at the earlier ones and at itself."""

    def __init__(self, first_store: bool):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)
        self.register_buffer("bank", torch.randn(6, 4))
        self.first_store = first_store

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if self.first_store:
            self.bank[: len(h)] = h.detach()[:6]
        bank = self.bank.clone()
        h = h + (h @ bank.T).softmax(1) @ bank
        if not self.first_store:
            self.bank[: len(h)] = h.detach()[:6]
        return self.b(h)


class ByFrequency(nn.Module):
    """An embedding whose gradient is divided by how often a word occurs in the batch."""

    def __init__(self, bag: bool):
        super().__init__()
        kind = nn.EmbeddingBag if bag else nn.Embedding
        self.words, self.head = kind(9, 4, scale_grad_by_freq=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x)
        return self.head(h if h.dim() == 2 else h.mean(1))


def contrastive(z: Tensor, _: Any) -> Tensor:
    z = F.normalize(z)
    return F.cross_entropy(5 * z @ z.T, torch.arange(len(z)), reduction="none")


def hardest(z: Tensor, _: Any) -> Tensor:
    far = torch.cdist(z, z)
    return far.amax(1) + z.square().sum(1)


def against_mean(z: Tensor, _: Any) -> Tensor:
    return (z - z.mean(0)).square().sum(1)


def weighted_by_batch(z: Tensor, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(z, targets, reduction="none")
    return losses / losses.detach().sum()


def share_of_batch(z: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(z, targets, reduction="none") / len(z)


def focal_by_rank(z: Tensor, targets: Tensor) -> Tensor:
    """Hard examples alone: those in the upper half of the batch."""
    losses = F.cross_entropy(z, targets, reduction="none")
    return losses * (losses >= losses.median())


def ranked(z: Tensor, _: Any) -> Tensor:
    return F.softplus(z[:, 0] - z[:, 0].roll(1)) if len(z) > 1 else z[:, 0]


def last_by_first(z: Tensor, _: Any) -> Tensor:
    losses = readout(z)
    return losses * torch.where(torch.arange(len(z)) == len(z) - 1, 1 + losses[0].sigmoid(), 1.0)


def class_weights(z: Tensor, targets: Tensor) -> Tensor:
    """Weights by the classes' frequencies in the batch."""
    counts = F.one_hot(targets, 3).sum(0).clamp(min=1).to(z)
    return F.cross_entropy(z, targets, weight=1 / counts, reduction="none")


MIXING_LOSSES = (
    contrastive, hardest, against_mean, weighted_by_batch, share_of_batch, focal_by_rank, ranked,
    last_by_first, class_weights,
)  # fmt: skip


class Clip(nn.Module):
    """Two towers and the table of all similarities."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 6), nn.Linear(5, 6)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a, b = self.a(x), self.b(x)
        return {"embeds": a, "logits_per_image": a @ b.T}


def of_similarities(outputs: Any, _: Any) -> Tensor:
    table = outputs["logits_per_image"]
    return F.cross_entropy(table, torch.arange(len(table)), reduction="none")


def labelled(n: int) -> Batch:
    return Batch(torch.randn(n, 4), torch.randint(0, 3, (n,)))


def cases() -> list[Case]:
    out = []
    sizes = ((4, 4, 3), (3, 3, 2), (2, 4, 4), (1, 4, 5), (8, 8, 3))
    for k, (name, step) in enumerate(STEPS.items()):
        for place in range(3):
            out.append(
                Case(
                    f"{name}, after layer {place}",
                    "mixing",
                    lambda s=step, p=place: With(s, p),
                    vectors(4),
                    sizes=sizes[(k + place) % 5],
                    in_suite=place == k % 3,
                )
            )
        out.append(
            Case(f"{name}, of inputs", "mixing", lambda s=step: OnInputs(s, 9), vectors(4),
                 sizes=sizes[k % 5], in_suite=k % 3 == 0)
        )  # fmt: skip
    for k, loss in enumerate(MIXING_LOSSES):
        name = f"loss: {loss.__name__.replace('_', ' ')}"
        out.append(
            Case(name, "mixing", lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)),
                 labelled, loss, sizes[k % 5])
        )  # fmt: skip
        out.append(Case(name + ", one layer", "mixing", lambda: nn.Linear(4, 3), labelled, loss))
    for store in (False, True):
        out.append(
            Case(f"memory bank, stores first: {store}", "mixing", lambda s=store: Bank(s),
                 vectors(4), stateful=True)
        )  # fmt: skip
    for bag in (False, True):
        out.append(
            Case(f"weighted by frequency, bag: {bag}", "mixing", lambda b=bag: ByFrequency(b),
                 lambda n: Batch(torch.randint(0, 4, (n, 3))))
        )  # fmt: skip
    out.append(Case("similarities, the loss looks at embeddings", "mixing", Clip, vectors(5)))
    out.append(
        Case("similarities, the loss looks at them", "mixing", Clip, vectors(5), of_similarities)
    )
    out.append(
        Case("batch norm in training mode", "mixing",
             lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)),
             vectors(4), training=True, stateful=True)
    )  # fmt: skip
    return out
