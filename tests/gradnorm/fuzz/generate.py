"""A random network, its batches and its loss, all from one integer.

A plan names the blocks, each with a seed of its own, so that a block can be left out and the others
stay what they are: that is how a failing plan is made smaller.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Any

import torch
from campaign.case import Batch, Case
from campaign.heads import LOSSES
from campaign.mixing import MIXING_LOSSES
from torch import Tensor, nn

from fuzz.blocks import BLOCKS, Shape, score
from fuzz.mixers import mixer

HEADS = ("last", "first", "mean", "amax", "argmax", "length", "flat", "topk", "masked", "sorted")
MIXING_RATE = 0.15


@dataclass(frozen=True)
class Plan:
    """blocks: name and seed of each, in order. shape: of a sample. sizes: of the three batches."""

    seed: int
    shape: Shape
    blocks: tuple[tuple[str, int], ...]
    head: str
    classes: int
    loss: str
    sizes: tuple[int, ...]
    double: bool = True

    def case(self) -> Case:
        """The plan as a case."""
        mixing = {f.__name__: f for f in MIXING_LOSSES if f.__code__.co_argcount == 2}
        loss: Any = LOSSES.get(self.loss) or with_label(mixing[self.loss], self.classes)
        return Case(
            str(self.seed), "random", lambda: Network(self), lambda n: draw(n, self.shape), loss,
            self.sizes,
        )  # fmt: skip

    def script(self) -> str:
        """Python that tries the plan again; run with `src` and `tests/gradnorm` on the path."""
        return "\n".join(
            [
                "from campaign.judge import try_case",
                "from fuzz.generate import Network, Plan",
                "",
                f"plan = {self!r}",
                "print(Network(plan))",
                "print(*try_case(plan.case(), seed=plan.seed), sep='\\n')",
            ]
        )


def with_label(loss: Any, classes: int) -> Any:
    return lambda outputs, targets: loss(outputs, targets["label"] % min(classes, 3))


def plan(seed: int) -> Plan:
    """The plan of this seed."""
    r = random.Random(seed)
    square = r.choice([2, 4, 4, 8]) if r.random() < 0.4 else None
    kind = r.choice(["vector", "sequence", "sequence", "sequence", "image"])
    sides = {"vector": 1, "sequence": 2, "image": 3}[kind]
    shape = tuple(square or r.choice([2, 3, 4, 6, 8]) for _ in range(sides))
    if kind == "image":
        shape = (min(shape[0], 4), *(min(s, 6) for s in shape[1:]))
    names = list(BLOCKS)
    blocks = [(r.choice(names), r.randrange(2**31)) for _ in range(r.randint(1, 6))]
    if r.random() < MIXING_RATE:
        blocks.insert(r.randint(0, len(blocks)), ("mix", r.randrange(2**31)))
    loss = r.choice(list(LOSSES))
    if r.random() < MIXING_RATE / 3:
        loss = r.choice([f.__name__ for f in MIXING_LOSSES])
    classes = r.choice([square or 3, 3, 4, 2])
    loss = loss if loss != "class_weights" or classes == 3 else "contrastive"
    first = r.choice([1, 2, 3, 4, 5, 8, square or 4, square or 3, shape[0]])
    sizes = (first, first, r.choice([1, 2, 3, 5, 8, shape[-1]]))
    return Plan(seed, shape, tuple(blocks), r.choice(HEADS), classes, loss, sizes)


def draw(n: int, shape: Shape) -> Batch:
    targets = {"label": torch.randint(0, 8, (n,)), "offset": 2 * torch.randn(n)}
    return Batch(torch.randn(n, *shape), targets)


def read(head: str, h: Tensor, x: Tensor) -> Tensor:
    """(n, f) of (n, L, f) by the data."""
    n, length = h.shape[:2]
    total = score(x.flatten(1))
    row = torch.arange(n)
    if head == "last":
        return h[:, -1]
    if head == "first":
        return h[:, 0]
    if head == "mean":
        return h.mean(1)
    if head == "amax":
        return h.amax(1)
    if head == "argmax":
        return h[row, score(h).argmax(1)]
    if head == "length":
        return h[row, (total.abs() * 5).long() % length]
    if head == "topk":
        best = score(h).topk(min(2, length), dim=1).indices
        return h.gather(1, best[..., None].expand(-1, -1, h.shape[2])).sum(1)
    if head == "masked":
        mask = torch.arange(length) <= ((total.abs() * 5).long() % length)[:, None]
        return (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    if head == "sorted":
        return h.sort(1).values[:, -1]
    return h.flatten(1)


class Network(nn.Module):
    """The network of a plan; blocks without meaning for their input's shape are left out."""

    def __init__(self, plan: Plan):
        super().__init__()
        body, shape = [], plan.shape
        for name, seed in plan.blocks:
            r = random.Random(seed)
            torch.manual_seed(seed)
            if name == "mix":
                body.append(mixer(r))
                continue
            made = BLOCKS[name](r, shape)
            if made is not None:
                body.append(made[0])
                shape = made[1]
        self.body = nn.ModuleList(body)
        self.head_name = plan.head
        torch.manual_seed(plan.seed)
        width = self.read(torch.zeros(2, *shape), torch.zeros(2, *plan.shape)).shape[1]
        self.head = nn.Linear(width, plan.classes)

    def read(self, h: Tensor, x: Tensor) -> Tensor:
        if h.dim() == 2:
            return h
        if h.dim() > 3:
            h = h.flatten(2).transpose(1, 2)
        return read(self.head_name, h, x)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for part in self.body:
            h = part(h)
        return self.head(self.read(h, x))


def smaller(plan: Plan, fails: Any) -> Plan:
    """A plan with fewer blocks and simpler parts for which `fails` still holds."""
    simpler = True
    while simpler:
        simpler = False
        options = [
            dataclasses.replace(plan, blocks=plan.blocks[:k] + plan.blocks[k + 1 :])
            for k in range(len(plan.blocks))
        ]
        options += [dataclasses.replace(plan, sizes=plan.sizes[:k] + plan.sizes[k + 1 :])
                    for k in range(len(plan.sizes)) if len(plan.sizes) > 1]  # fmt: skip
        if plan.loss != "smooth":
            options.append(dataclasses.replace(plan, loss="smooth"))
        if plan.head != "flat":
            options.append(dataclasses.replace(plan, head="flat"))
        for option in options:
            try:
                if fails(option):
                    plan, simpler = option, True
                    break
            except Exception:  # a plan that cannot be built is no simpler plan
                continue
    return plan
