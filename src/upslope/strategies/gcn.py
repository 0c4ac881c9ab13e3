"""UncertainGCN, CoreGCN: a graph network learns what is labelled (Caramalau et al., CVPR 2021).

Nodes are the labelled set and the candidates, Z their features with rows of unit length (n, d).

    S = Z Z^T - I,   D = diag(column sums of S),   A = S D^-1 + I
    hidden = dropout(relu(A X W1 + b1)) (128 units),   s = sigmoid(A hidden W2 + b2),   X = Z
    loss = -mean_labelled log s  -  1.2 mean_unlabelled log(1 - s)

UncertainGCN takes the candidates whose s is nearest to 0.1; CoreGCN takes greedy k-center on the
hidden units. A is dense, but never formed: A X = Z (Z^T D^-1 X) - D^-1 X + X costs n d for a column
of X where the matrix would cost n^2. A Z is computed once, not at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from upslope.pool import Need, PoolView
from upslope.strategies.base import Choice, QueryStrategy
from upslope.strategies.core_set import k_center
from upslope.strategies.distances import normalise

HIDDEN = 128
DROPOUT = 0.3
UNLABELLED_WEIGHT = 1.2
TARGET = 0.1


@dataclass(frozen=True)
class Graph:
    """A over n nodes, held as Z (n, d) and the degrees (n, 1)."""

    z: Tensor
    degrees: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Graph:
        """The graph of these features. A degree counts as 1 at least: features of mixed signs
        may sum to none, and a node would be divided by nothing."""
        z = normalise(features)
        degrees = (z @ z.sum(dim=0) - z.square().sum(dim=1)).clamp(min=1.0)
        return cls(z, degrees[:, None])

    def propagate(self, x: Tensor) -> Tensor:
        """Return A x for the graph's matrix A. x: (n, k)."""
        by_degree = x / self.degrees
        # S has no self-loops: the diagonal of Z Z^T, 1 for all but rows of zeros, is taken off.
        loops = self.z.square().sum(dim=1, keepdim=True)
        result: Tensor = self.z @ (self.z.T @ by_degree) - loops * by_degree + x
        return result


class GraphNetwork:
    """Two graph layers; parameters from `rng`, uniform within 1 / sqrt(outputs), as the source."""

    def __init__(self, width: int, rng: torch.Generator) -> None:
        def uniform(*shape: int) -> Tensor:
            bound = shape[-1] ** -0.5
            values = torch.empty(shape).uniform_(-bound, bound, generator=rng)
            return values.requires_grad_()

        self.w1, self.b1 = uniform(width, HIDDEN), uniform(HIDDEN)
        self.w2, self.b2 = uniform(HIDDEN, 1), uniform(1)
        self.rng = rng

    def parameters(self) -> list[Tensor]:
        """Return the weights and biases of both layers."""
        return [self.w1, self.b1, self.w2, self.b2]

    def __call__(self, graph: Graph, az: Tensor, *, dropout: bool) -> tuple[Tensor, Tensor]:
        """(hidden units (n, 128), logits of s (n,)). az: A Z, (n, d)."""
        hidden = (az @ self.w1 + self.b1).relu()
        if dropout:
            dropout_mask = torch.rand(hidden.shape, generator=self.rng) >= DROPOUT
            hidden = hidden * dropout_mask / (1 - DROPOUT)
        return hidden, (graph.propagate(hidden @ self.w2) + self.b2).flatten()


def loss_of(logits: Tensor, labelled: int) -> Tensor:
    """The loss above; the first `labelled` nodes are the labelled ones."""
    loss = -UNLABELLED_WEIGHT * F.logsigmoid(-logits[labelled:]).mean()
    return loss - F.logsigmoid(logits[:labelled]).mean() if labelled else loss


@dataclass(frozen=True)
class GraphStrategy(QueryStrategy):
    """What the two share: the graph network and its training, of this many steps."""

    signal_cost: ClassVar[str] = "one forward per candidate and per labelled sample"
    best_for: ClassVar[str] = "medium budgets"

    steps: Annotated[int, Field(ge=1, description="full-batch steps of Adam")] = 200

    @property
    def needs(self) -> tuple[Need, ...]:
        """Features, of the labelled set too."""
        return (Need.of("features", labelled=True),)

    def fit_network(self, pool: PoolView, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(hidden units, s) of every node after training, the labelled ones first."""
        need = self.needs[0]
        graph = Graph.of(torch.cat([pool.labelled_signal(need), pool.signal(need)]))
        az = graph.propagate(graph.z)
        network = GraphNetwork(graph.z.shape[1], rng)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=5e-4)
        with torch.enable_grad():
            for _ in range(self.steps):
                optimizer.zero_grad()
                _, logits = network(graph, az, dropout=True)
                loss_of(logits, len(pool.labelled)).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        with torch.no_grad():
            hidden, logits = network(graph, az, dropout=False)
        return hidden, logits.sigmoid()


@dataclass(frozen=True)
class UncertainGCN(GraphStrategy):
    """The candidates that the graph network holds least surely for unlabelled."""

    name: ClassVar[str] = "uncertain-gcn"
    reference: ClassVar[str] = "Caramalau, Bhattarai and Kim, CVPR 2021, Algorithm 1"
    cost: ClassVar[str] = "200 steps of (n + m) d 128; memory (n + m) d"

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """Choose the smallest distances |s - 0.1|."""
        _, s = self.fit_network(pool, rng)
        scores = -(s[len(pool.labelled) :] - TARGET).abs()
        order = scores.argsort(descending=True, stable=True)
        return Choice(order[:budget].tolist(), scores)


@dataclass(frozen=True)
class CoreGCN(GraphStrategy):
    """Greedy k-center on the hidden units of the graph network."""

    name: ClassVar[str] = "core-gcn"
    reference: ClassVar[str] = "Caramalau, Bhattarai and Kim, CVPR 2021, Algorithm 2"
    cost: ClassVar[str] = "200 steps of (n + m) d 128, then n (m + K) 128; memory (n + m) d"

    def choose(self, pool: PoolView, budget: int, rng: torch.Generator) -> Choice:
        """The farthest candidate, `budget` times."""
        hidden, _ = self.fit_network(pool, rng)
        m = len(pool.labelled)
        positions, nearest, _ = k_center(hidden[m:], hidden[:m], budget)
        return Choice(positions, notes={"radius": float(nearest.max())})
