"""Proof that a batch's per-sample gradients are right, by ways that know no kernels and no layouts.

Three things are held against each other:

1. *The gradients.* For random numbers w_n, sum_n w_n G_n of what the kernels found must be the
   gradient of sum_n w_n L_n, which an ordinary backward pass gives, without interception. Both
   sides are linear in w: if they agree for random numbers, G_n is right for every sample with
   w_n != 0, with probability one: all of up to 16, and a random eighth, 8 at least, of more. The
   tensors are compared through one random direction each (`kernel_results`), which costs next to
   nothing.
2. *The norms.* Of one sample, drawn at random, the gradient is formed by autograd alone, and what
   was asked for (its norm, its sketch) is computed from it.
3. *The separation.* Passes through the kernels with a power of two of its own for each sample's
   loss must multiply what reaches every use of a weight by that power, sample by sample, exactly
   (`separation`): no loss feels another sample, in the model or in the loss, and each place belongs
   to the sample that the layout says. The ordinary pass runs some samples without the others:
   their outputs must be the same without that company.

A batch that fails is done again sample by sample, and said so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from upslope.errors import GradientNormError
from upslope.gradnorm.core.model_io import Loss, copy_objects, differentiable, half
from upslope.gradnorm.core.reductions import Reduction
from upslope.gradnorm.core.separation import differ
from upslope.gradnorm.proofs.backward import one_hot, pull_back
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.count import refuse_count
from upslope.gradnorm.proofs.kernel_results import (
    Checksums,
    Direction,
    KernelGradients,
    ProofFailed,
)
from upslope.gradnorm.proofs.mixing import (
    groups_without_others,
    refuse_company,
    refuse_losses_in_company,
    unread_outputs,
    unused_outputs,
)
from upslope.gradnorm.proofs.own_outputs import gradients_at_own_outputs, run_without_company
from upslope.gradnorm.proofs.passes import DrawsFollowData
from upslope.gradnorm.proofs.per_sample_loop import refuse_unless_provable, sample_by_sample

_TOLERANCES = {torch.float64: (1e-7, 1e-10), torch.float32: (3e-2, 2e-5)}
"""Of a type: how far two ways may differ, relative to the gradient of the parameter, and to the
largest gradient of any. In float32 a few of a million activations round to the other side of a
kink, which moves the gradient of a deep network's first layers by up to a hundredth; a sample in a
wrong place moves it by a quarter or more. What differs by more is done again in float64."""

_HALF = (0.2, 1e-2)

_ONE_SAMPLE = {torch.float64: 4e-7, torch.float32: 4e-2}
"""Of a type: how far what is asked of one sample may differ, relative to it; squares do twice."""

_ONE_SAMPLE_HALF = 0.8

_ALL = 16
"""Samples up to which the gradients of all of them are proven."""


class SeparationFailed(ProofFailed):
    """The losses of other samples reach a sample's place: it is mixed, or its hooks are not
    linear."""


def check_separation(
    run: BatchRun, once: Checksums, scaled_sums: Mapping[int, Tensor], u: Tensor
) -> None:
    """See 3. in the head of this file. once, scaled_sums: of the passes without and with powers u.

    Raises:
        SeparationFailed: naming the operator that other samples' losses reach.
    """
    # A backward pass that draws or counts: no two of its passes can be compared.
    if once.sums.keys() != scaled_sums.keys():
        raise ProofFailed("the backward pass of the model is not the same each time")
    for index, (sums, size) in once.sums.items():
        if bool(differ(scaled_sums[index], sums, u, size, run.options.dtype).any()):
            kernel = once.kernels[index]
            names = ", ".join(n for w in kernel.weights for n in run.weights.sources(w))
            raise SeparationFailed(
                "the losses of other samples reach a sample's own place, or a backward pass that "
                f"is not linear does, at `{kernel.name}` of {names or 'no parameter'}"
            )


def check_gradients(
    run: BatchRun, loss: Loss, kernel_gradients: KernelGradients, reduction: Reduction
) -> None:
    """See 1. and 2. in the head of this file. kernel_gradients: by the kernels, of `reduction`.

    Raises:
        ProofFailed: naming the parameter whose gradients differ.
        GradientNormError: the model or the loss mixes samples.
    """
    rng = torch.Generator().manual_seed(run.n)
    # Away from zero, so that no sample goes unproven; of either sign, so that errors do not add
    # up to a common scale.
    w = (torch.rand(run.n, generator=rng) + 0.5) * (
        torch.randint(2, (run.n,), generator=rng) * 2 - 1
    )
    # Of a model that draws, a sample by itself takes a pass of the whole batch.
    groups = choose_samples(run.n, everyone=run.may_mix_samples and not run.is_random)
    samples_checked = torch.cat(groups)
    w = torch.zeros_like(w).index_copy(0, samples_checked, w[samples_checked])
    one = int(torch.randint(len(samples_checked), (1,), generator=rng))
    plain, of_one = _comparable_gradients(
        run, loss, kernel_gradients, w, groups, int(samples_checked[one])
    )
    near, floor = tolerance(run)
    largest = max((gradient.size for gradient in plain.values()), default=0.0)
    for name in run.weights.parameters:
        product, gradient = kernel_gradients.products.get(name), plain[name]
        ours = 0.0
        if product is not None:
            # In double: sums of float32 over thousands of samples would lose the digits compared
            # here.
            ours = float((product.double() * w.to(product).double()).sum())
        if not abs(ours - gradient.product) <= near * gradient.size + floor * largest:
            raise ProofFailed(
                f"autograd finds another gradient for {_uses(run, kernel_gradients, name)}"
            )
    _check_one(run, of_one, kernel_gradients, reduction, int(samples_checked[one]))


def _uses(run: BatchRun, kernel_gradients: KernelGradients, name: str) -> str:
    operators = {
        kernel.name
        for kernel in kernel_gradients.kernels
        if any(name in run.weights.sources(w) for w in kernel.weights)
    }
    operator_words = (
        ", ".join(f"`{operator}`" for operator in sorted(operators)) or "an operator not seen"
    )
    return f"`{name}`, used by {operator_words}"


def tolerance(run: BatchRun) -> tuple[float, float]:
    """How far two ways may differ: relative to a parameter's gradient, and to the largest one."""
    return _TOLERANCES.get(run.precision, _HALF)


def choose_samples(n: int, *, everyone: bool = False) -> list[Tensor]:
    """Return the samples whose gradients are formed by autograd, in groups that go alone.

    Where samples may depend on others (`everyone`): each by itself, since a statistic of half of
    them may be that of all. Else up to `_ALL` samples: two halves. Of more, a random part: the
    ordinary pass is what a proof costs, and that each sample's places are its own is seen of all.
    """
    if everyone:
        return [torch.tensor([i]) for i in range(n)]
    if n <= _ALL:
        return [rows for rows in half(n, seed=n) if len(rows)]
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    return [order[: max(_ALL // 2, n // 8)].sort(descending=True).values]


class SummedGradient(NamedTuple):
    """What is compared of the gradient of one parameter, summed over groups of samples.

    size: the root of the sum of squares of the groups' norms, the norm of their sum but for what
    they have in common. product: with the direction of the parameter (`kernel_results`).
    """

    size: float = 0.0
    product: float = 0.0

    def add(self, name: str, parameter: Tensor, gradient: Tensor) -> SummedGradient:
        """Return the same with the gradient of another group."""
        dense = (gradient.to_dense() if gradient.is_sparse else gradient).detach()
        product = Direction.of(name, parameter).product(dense[None], parameter.dim())
        size = math.hypot(self.size, float(torch.linalg.vector_norm(dense)))
        return SummedGradient(size, self.product + float(product.double()))


Gradients = tuple[Tensor | None, ...]
"""One gradient per parameter, in order; None where none is reached."""


def _comparable_gradients(
    run: BatchRun,
    loss: Loss,
    kernel_gradients: KernelGradients,
    w: Tensor,
    groups: Sequence[Tensor],
    one: int,
) -> tuple[dict[str, SummedGradient], Gradients]:
    """As `_plain_gradients`, by passes that meet the random numbers of the batch."""
    while True:
        try:
            return _plain_gradients(run, loss, kernel_gradients, w, groups, one)
        except DrawsFollowData:  # twice at most: the run has taken note of what they follow
            refuse_unless_provable(run)


def _plain_gradients(
    run: BatchRun,
    loss: Loss,
    kernel_gradients: KernelGradients,
    w: Tensor,
    groups: Sequence[Tensor],
    one: int,
) -> tuple[dict[str, SummedGradient], Gradients]:
    """name -> the gradient of sum_n w_n L_n, by autograd alone; and the gradients of L_one.

    No more than one gradient of all parameters is there at a time: of a model with few activations,
    these are most of its memory.
    """
    parameters = list(run.weights.parameters.values())
    shares = gradients_at_own_outputs(run, loss, parameters)
    if run.draws_follow_data:
        shares = None  # no pass but that of the batch as it is meets the same random numbers
    parts: Iterator[Gradients]
    if shares is not None:
        if run.is_random and run.n > 1:
            _refuse_company_of_random(run, loss, shares, groups, one)
        # Routing by capacity shows only where the company is changed, which is cheap without
        # gradients.
        if not kernel_gradients.repeats and not (run.is_random and run.may_mix_samples):
            _compare_rest(run, loss, shares, torch.cat(list(groups)))
        parts = map(functools.partial(_gradients_of, run, loss, parameters, shares, w), groups)
    else:
        parts = iter([_whole_gradients(run, parameters, loss, w, kernel_gradients.losses)])
    sums_of_groups = {name: SummedGradient() for name in run.weights.parameters}
    for part in parts:
        for (name, parameter), g in zip(run.weights.parameters.items(), part, strict=True):
            if g is not None:
                sums_of_groups[name] = sums_of_groups[name].add(name, parameter, g)
        del part, g
    if shares is None:
        return sums_of_groups, _gradients_of_one(run, loss, one)
    # Alone, and not from its group: a model may do something else for few samples.
    unit = one_hot(w, one)
    of_one = _gradients_of(run, loss, parameters, shares, unit, torch.tensor([one]))
    return sums_of_groups, of_one


def _refuse_company_of_random(
    run: BatchRun, loss: Loss, shares: Sequence[Tensor], groups: Sequence[Tensor], one: int
) -> None:
    """Run samples of a model that draws without the others, beyond those of the gradients."""
    groups_alone = [torch.tensor([i]) for i in (range(run.n) if run.may_mix_samples else [one])]
    with torch.no_grad():
        for rows in groups_alone if run.may_mix_samples else ():
            run_without_company(run, loss, shares, rows)
    _refuse_count(run, [*groups, *groups_alone], unused_outputs(run.outputs, shares))


def _refuse_count(run: BatchRun, groups: Sequence[Tensor], unused_places: set[int]) -> None:
    try:
        refuse_count(run, groups, unused_places)
    except GradientNormError as error:  # or a kernel is wrong: one by one, it will show
        raise ProofFailed("outputs are not those of ordinary passes without company") from error


def _compare_rest(
    run: BatchRun, loss: Loss, shares: Sequence[Tensor], samples_seen: Tensor
) -> None:
    """Run the samples whose gradients are not formed in two halves: outputs must be the same.

    samples_seen: the samples that are run without the others anyway. Where data decide which
    samples go where, experts that drop what exceeds their capacity show here only.
    """
    rest = (
        torch.ones(run.n, dtype=torch.bool).index_fill(0, samples_seen, False).nonzero().flatten()
    )
    for places in half(len(rest), seed=run.n):
        if len(places):
            with torch.no_grad():
                run_without_company(run, loss, shares, rest[places])


def _gradients_of(
    run: BatchRun,
    loss: Loss,
    parameters: Sequence[Tensor],
    shares: Sequence[Tensor],
    w: Tensor,
    rows: Tensor,
) -> Gradients:
    """Return the sum, weighted by w (n,), of the gradients of samples that run without the others.

    Their outputs must be what they are in the batch.
    """
    company, outputs, kernel_gradients = run_without_company(run, loss, shares, rows)
    ends = [x for x in tree_flatten(outputs)[0] if differentiable(x)]
    if len(ends) != len(kernel_gradients):
        raise ProofFailed("the model's outputs for some of the samples are of another kind")
    once = torch.arange(len(company)) < len(rows)  # a sample that went twice counts once
    weights = torch.where(once, w[company], 0)
    weighted_gradients = [
        g * weights.to(g).view(-1, *(1,) * (g.dim() - 1)) for g in kernel_gradients
    ]
    return pull_back(ends, weighted_gradients, parameters)


def _whole_gradients(
    run: BatchRun, parameters: Sequence[Tensor], loss: Loss, w: Tensor, losses: Tensor
) -> Gradients:
    outputs = run.run_plain(run.batch)
    with run.loss_pass():
        plain = loss(copy_objects(outputs))
    near, floor = tolerance(run)
    size = losses.detach().abs().max() if run.n else losses.new_zeros(())
    if not bool(((plain - losses).detach().abs() <= near * size + floor).all()):
        raise ProofFailed("the losses are not those of an ordinary forward pass")
    if not plain.requires_grad:
        return (None,) * len(parameters)
    if run.n > 1:
        if not run.draws_follow_data:
            refuse_company(run, outputs, plain)
        if run.is_random:
            refuse_count(run, groups_without_others(run), unread_outputs(outputs, plain))
        if run.may_mix_samples:
            refuse_losses_in_company(run, loss)
    return pull_back([plain], [w.to(plain)], parameters)


def _gradients_of_one(run: BatchRun, loss: Loss, sample: int) -> Gradients:
    """The gradients of one sample's loss by autograd alone, where the loss cannot be cut off."""
    try:
        (gradients,) = sample_by_sample(run, loss, [sample])
    except GradientNormError as error:  # or rounding: float64, or all samples one by one, will tell
        raise ProofFailed("outputs are not those of ordinary passes without company") from error
    return gradients


def _check_one(
    run: BatchRun,
    gradients: Gradients,
    kernel_gradients: KernelGradients,
    reduction: Reduction,
    sample: int,
) -> None:
    """Hold what was asked of one sample against its gradients by autograd alone."""
    near, (_, floor) = _ONE_SAMPLE.get(run.precision, _ONE_SAMPLE_HALF), tolerance(run)
    names, rows = run.weights.parameters, kernel_gradients.rows
    pairs = {}
    for (name, parameter), g in zip(names.items(), gradients, strict=True):
        # Neither way reached it: it has zeros in both.
        if g is None and name not in rows:
            continue
        dense = torch.zeros_like(parameter) if g is None else g
        dense = dense.to_dense() if dense.is_sparse else dense
        wanted_norm = reduction.of_dense(name, dense.detach()[None])[0].double()
        got = rows[name][sample].double() if name in rows else torch.zeros_like(wanted_norm)
        pairs[name] = got, wanted_norm
    # Reductions are of the square of a norm's size.
    largest = max((float(e.abs().max()) for _, e in pairs.values()), default=0.0)
    for name, (got, wanted_norm) in pairs.items():
        largest_difference = near * wanted_norm.abs().max() + 4 * floor * largest
        if not bool(((got - wanted_norm).abs() <= largest_difference).all()):
            raise ProofFailed(
                f"autograd finds another norm for {_uses(run, kernel_gradients, name)}"
            )
