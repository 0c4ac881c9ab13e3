"""EK-FAC: the Fisher matrix in Kronecker-factored eigenbases, one block a layer, and its inverse.

For a linear or convolution layer with patches a and output gradients g (see `layers`)

    F ~ (U_a (x) U_g) diag(lambda) (U_a (x) U_g)^T
    U_a, U_g  eigenvectors of E[a a^T] and E[g g^T]
    lambda    E[(U_g^T G U_a)^2], the second moments of the per-sample gradients in that basis

and diag(E[G^2]) for all other parameters. Blocks between layers are taken as zero. With the
eigenbasis given, lambda is the best diagonal in the Frobenius norm.

Sources: Martens and Grosse (2015); Grosse and Martens (2016) for convolutions; George, Laurent,
Bouthillier, Ballas and Vincent (2018) for the eigenvalues; Grosse et al. (2023) for influence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from upslope.autodiff import differentiating_twice
from upslope.closed_forms import cross_entropy
from upslope.errors import InfluenceError
from upslope.gradnorm.losses import logits_of
from upslope.influence.layers import Layer, layers_of, watching
from upslope.influence.network import (
    Theta,
    map_tensors,
    sample_count,
)
from upslope.influence.products import Curvature
from upslope.influence.solvers import Solution, check_damping, relative_residual

SCRATCH = 2**24
"""Entries of per-sample gradients of one layer that are formed at a time."""


class EKFAC:
    """The approximation, fitted to the model and the data of a curvature: two passes over them.

    draws: labels drawn from the posterior for each sample, or None for the exact expectation over
        all classes, one backward pass per class; or "given" for the loss at the given targets (the
        empirical Fisher). The first two are the Fisher matrix of cross-entropy on logits
        (n, classes), which is its Gauss-Newton matrix.

    factored: the weights with a Kronecker-factored block. diagonal: the other parameters, and those
        of layers that run more than once, or on rows that are not the samples.

    curvature: over the training data. seed: of the labels that are drawn.

    Raises:
        InfluenceError: `draws` is none of these, or the model returns no logits (n, classes).
    """

    def __init__(self, curvature: Curvature, *, draws: int | str | None = None, seed: int = 0):
        if draws is not None and draws != "given" and not (isinstance(draws, int) and draws > 0):
            raise InfluenceError(
                f'Expected `draws` to be None, "given" or a positive number but got {draws!r}.'
            )
        self._network, self._curvature = curvature.network, curvature
        self._draws, self._seed = draws, seed
        layers = layers_of(self._network.model, self._network.theta)
        with differentiating_twice(self._network.model):
            self._layers = self._bases(layers)
            in_blocks = {name for layer, *_ in self._layers for name in (layer.weight, layer.bias)}
            self.diagonal = [name for name in self._network.theta if name not in in_blocks]
            self._values, self._squares = self._second_moments()
        self.factored = [layer.weight for layer, *_ in self._layers]

    def product(self, vector: Tensor) -> Tensor:
        """Return F v, (p,), for the Fisher matrix F.

        vector: (p,).
        """
        return self._map_layers(vector, lambda v, values: v * values)

    def inverse_product(self, vector: Tensor, damping: float) -> Tensor:
        """Return (F + damping I)^-1 v, (p,); also a good preconditioner.

        vector: (p,).

        Raises:
            InfluenceError: a damping that is not positive: some eigenvalues are zero.
        """
        check_damping(damping)
        if damping == 0:
            raise InfluenceError(
                "Expected `damping` to be positive for the inverse of EK-FAC, which has "
                "eigenvalues of zero, but got 0."
            )
        return self._map_layers(vector, lambda v, values: v / (values + damping))

    def solver(self, damping: float) -> Callable[[Curvature, Tensor], Solution]:
        """Return a solver that answers with `inverse_product`.

        Its residual is that of the curvature it is asked to solve, which EK-FAC approximates.

        damping: added to the eigenvalues.
        """
        check_damping(damping)

        def solve(curvature: Curvature, b: Tensor) -> Solution:
            x = self.inverse_product(b, damping)
            return Solution(x, relative_residual(curvature, x, b, damping), 0, "approximate")

        return solve

    def _map_layers(self, vector: Tensor, entrywise: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        theta = self._network.split(self._network.check_vector(vector, "vector"))
        products: Theta = {}
        for (layer, u_a, u_g), values in zip(self._layers, self._values, strict=True):
            inner = entrywise(u_g.T @ layer.block(theta) @ u_a, values)
            products.update(layer.unblock(u_g @ inner @ u_a.T, theta))
        for name in self.diagonal:
            products[name] = entrywise(theta[name], self._squares[name])
        return self._network.flatten_theta(products)

    def _bases(self, layers: list[Layer]) -> list[tuple[Layer, Tensor, Tensor]]:
        """Return eigenvectors for the layers that each forward pass uses once, samples in front."""
        moments: dict[str, tuple[Tensor, Tensor]] = {}
        left_out: set[str] = set()
        for batch, aims in self._weighted_losses():
            for layer, a, gs in self._run_pass(layers, batch, aims, left_out):
                aa, gg = moments.get(layer.weight, (torch.zeros(()), torch.zeros(())))
                aa = aa.to(a) + torch.einsum("nti,ntj->ij", a, a)
                for g in gs:
                    gg = gg.to(g) + torch.einsum("nti,ntj->ij", g, g)
                moments[layer.weight] = aa, gg
        layers_measured = [layer for layer in layers if layer.weight in moments.keys() - left_out]
        return [
            (la, *(torch.linalg.eigh(m)[1] for m in moments[la.weight])) for la in layers_measured
        ]

    def _second_moments(self) -> tuple[list[Tensor], Theta]:
        """Return (lambda of each layer (out, in [+ 1]); mean squared gradient of the other
        parameters).
        """
        theta, n = self._network.theta, self._curvature.samples
        values = [torch.zeros_like(layer.block(theta)) for layer, *_ in self._layers]
        squares = {name: torch.zeros_like(theta[name]) for name in self.diagonal}
        layers = [layer for layer, *_ in self._layers]
        for batch, aims in self._weighted_losses():
            passes = self._run_pass(layers, batch, aims, set())
            for (_, a, gs), (_, u_a, u_g), value in zip(passes, self._layers, values, strict=True):
                coordinates = a @ u_a
                for g in gs:
                    _add_squares(value, g @ u_g, coordinates)
            for aim in aims if self.diagonal else ():
                self._add_diagonal(squares, batch[0], aim)
        return [v / n for v in values], {name: s / n for name, s in squares.items()}

    def _run_pass(
        self,
        layers: list[Layer],
        batch: tuple[Any, Any],
        aims: list[Any],
        left_out: set[str],
    ) -> Iterator[tuple[Layer, Tensor, list[Tensor]]]:
        """Yield (layer, patches, output gradients of each loss), from one pass over the batch."""
        with watching(layers) as watch:
            outputs = self._network.outputs(self._network.leaves(), batch[0])
        n = sample_count(batch)
        # Samples that lie elsewhere, or are folded into rows with their positions, would be taken
        # for others: which rows are one sample's cannot be told.
        left_out |= {name for name, x in watch.inputs.items() if [len(part) for part in x] != [n]}
        once = [la for la in layers if la.weight in watch.outputs and la.weight not in left_out]
        if not once:
            return
        ends = [watch.outputs[layer.weight][0] for layer in once]
        gradients = [
            torch.autograd.grad(
                self._losses(outputs, aim).sum(),
                ends,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            for aim in aims
        ]
        for i, layer in enumerate(once):
            a = layer.patches(watch.inputs[layer.weight][0])
            yield layer, a, [layer.gradients(g[i]) for g in gradients]

    def _weighted_losses(self) -> Iterator[tuple[tuple[Any, Any], list[Any]]]:
        """Yield batches, each with what `_losses` takes to give second moments that add up to F."""
        rng = torch.Generator().manual_seed(self._seed)
        for batch in self._network.batches(self._curvature.data, "data"):
            if self._draws == "given":
                yield batch, [batch[1]]
                continue
            with torch.no_grad():
                logits = logits_of(self._network.outputs(self._network.theta, batch[0]))
            if logits.dim() != 2:
                raise InfluenceError(
                    "Expected logits of shape (n, classes) to take the expectation over labels "
                    f'but got {tuple(logits.shape)}. Use draws="given".'
                )
            p = logits.softmax(dim=1)
            if self._draws is None:
                # Weights sqrt(p_i): the gradients' squares then carry p_i.
                labels = torch.arange(p.shape[1], device=p.device)
                yield batch, [(y.expand(len(p)), p[:, y].sqrt()) for y in labels]
            else:
                assert isinstance(self._draws, int)
                label_draws = torch.multinomial(
                    p.cpu(), self._draws, replacement=True, generator=rng
                )
                weight = p.new_full((len(p),), self._draws**-0.5)
                yield batch, [(y, weight) for y in label_draws.T.to(p.device)]

    def _losses(self, outputs: Any, aim: Any) -> Tensor:
        """Return (n,): the loss at the given targets, or weighted cross-entropy at (labels,
        weights).
        """
        if self._draws == "given":
            return self._network.loss(outputs, aim)
        labels, weights = aim
        losses: Tensor = weights * cross_entropy(logits_of(outputs), labels)
        return losses

    def _add_diagonal(self, squares: Theta, inputs: Any, aim: Any) -> None:
        """Add the squares of the per-sample gradients of the parameters outside the blocks."""
        network = self._network
        diagonal = {name: network.theta[name] for name in squares}

        def loss(diagonal: Theta, one: Any, aim: Any) -> Tensor:
            theta = {**network.theta, **diagonal}
            outputs = network.outputs(theta, map_tensors(one, _batch_of_one))
            return self._losses(outputs, map_tensors(aim, _batch_of_one)).sum()

        gradients = vmap(grad(loss), in_dims=(None, 0, None if aim is None else 0))
        chunk = max(1, SCRATCH // sum(p.numel() for p in diagonal.values()))
        for first in range(0, sample_count((inputs, None)), chunk):
            some = partial(_rows, first=first, end=first + chunk)
            of_some = gradients(diagonal, map_tensors(inputs, some), map_tensors(aim, some))
            for name, g in of_some.items():
                squares[name] += g.square().sum(dim=0)


def _add_squares(total: Tensor, g: Tensor, a: Tensor) -> None:
    """Add to total (out, in): sum_n (sum_t g_nt a_nt^T)^2, from (n, t, out) and (n, t, in)."""
    if g.shape[1] == 1:
        total += g[:, 0].square().T @ a[:, 0].square()
        return
    chunk = max(1, SCRATCH // total.numel())
    for first in range(0, len(g), chunk):
        part = slice(first, first + chunk)
        total += torch.bmm(g[part].transpose(1, 2), a[part]).square().sum(dim=0)


def _batch_of_one(tensor: Tensor) -> Tensor:
    return tensor[None]


def _rows(tensor: Tensor, first: int, end: int) -> Tensor:
    return tensor[first:end]
