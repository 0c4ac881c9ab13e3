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
   their outputs must be the same without that company. Where the data send entries to places, any
   two samples are run apart once. Samples that numbers of the batch may steer otherwise than the
   others, and all of a model with custom functions, go apart: their gradients may be others where
   their outputs are not.

A batch that fails is done again sample by sample, and said so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from upslope.errors import GradientNormError
from upslope.gradnorm.core.layouts.separation import differ
from upslope.gradnorm.core.model_io import Loss, copy_objects, differentiable, half
from upslope.gradnorm.core.uses.reductions import Reduction
from upslope.gradnorm.proofs.backward import hand_out_gradients, one_hot
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.comparison import (
    AutogradGradients,
    compare,
    compare_losses,
    random_numbers,
)
from upslope.gradnorm.proofs.count import refuse_count
from upslope.gradnorm.proofs.kernel_results import Checksums, KernelGradients, ProofFailed
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

_ALL = 16
"""Samples up to which the gradients of all of them are proven."""


class SeparationFailed(ProofFailed):
    """The losses of other samples reach a sample's place: it is mixed, or its hooks are not
    linear."""


def check_separation(
    run: BatchRun, once: Checksums, scaled_sums: Mapping[int, Tensor], u: Tensor
) -> None:
    """Refuse a batch in which a sample's loss reaches another's place (3. in the head above).

    once, scaled_sums: of the passes without and with the powers u, (n,).

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
    """Hold gradients and norms against those of autograd (1. and 2. in the head above).

    kernel_gradients: what the kernels found, of `reduction`.

    Raises:
        ProofFailed: naming the parameter whose gradients differ.
        GradientNormError: the model or the loss mixes samples.
    """
    # Of a model that draws, a sample by itself takes a pass of the whole batch.
    groups = choose_samples(run.n, everyone=run.may_mix_samples and not run.is_random)
    if not run.is_random:
        groups = [part for rows in groups for part in _split_by_way(rows, kernel_gradients.ways)]
    samples_checked = torch.cat(groups)
    w, one = random_numbers(run.n, samples_checked)
    autograd = _comparable_gradients(run, loss, kernel_gradients, reduction, w, groups, one)
    compare(run, kernel_gradients, w, one, autograd)


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


def _split_by_way(rows: Tensor, ways: Sequence[Hashable]) -> list[Tensor]:
    """Split some samples into those of equal ways: others would hide what each way does."""
    groups: dict[Hashable, list[int]] = {}
    for i in rows.tolist():
        groups.setdefault(ways[i], []).append(i)
    return [torch.tensor(part) for part in groups.values()]


def _comparable_gradients(
    run: BatchRun,
    loss: Loss,
    kernel_gradients: KernelGradients,
    reduction: Reduction,
    w: Tensor,
    groups: Sequence[Tensor],
    one: int,
) -> AutogradGradients:
    """As `_plain_gradients`, by passes that meet the random numbers of the batch."""
    while True:
        try:
            return _plain_gradients(run, loss, kernel_gradients, reduction, w, groups, one)
        except DrawsFollowData:  # twice at most: the run has taken note of what they follow
            refuse_unless_provable(run)


def _plain_gradients(
    run: BatchRun,
    loss: Loss,
    kernel_gradients: KernelGradients,
    reduction: Reduction,
    w: Tensor,
    groups: Sequence[Tensor],
    one: int,
) -> AutogradGradients:
    """The gradients of sum_n w_n L_n and of L_one, by autograd alone."""
    parameters = run.weights.parameters
    autograd = AutogradGradients(parameters, reduction)
    shares = gradients_at_own_outputs(run, loss, list(parameters.values()))
    if run.draws_follow_data:
        shares = None  # no pass but that of the batch as it is meets the same random numbers
    if shares is None:
        _whole_gradients(run, autograd, loss, w, kernel_gradients.losses)
        for name, g in zip(parameters, _gradients_of_one(run, loss, one), strict=True):
            if g is not None:
                autograd.take_one(name, g)
        return autograd
    if run.is_random and run.n > 1:
        _refuse_company_of_random(run, loss, shares, groups, one)
    # What data send to other samples shows only where the company is changed, which is cheap
    # without gradients. Where samples may depend on others, each goes by itself anyway.
    if not kernel_gradients.repeats and not run.may_mix_samples:
        _compare_apart(run, loss, shares)
    for rows in groups:
        _hand_out(run, loss, shares, w, rows, autograd.take)
    # Alone, and not from its group: a model may do something else for few samples.
    _hand_out(run, loss, shares, one_hot(w, one), torch.tensor([one]), autograd.take_one)
    return autograd


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


def _compare_apart(run: BatchRun, loss: Loss, shares: Sequence[Tensor]) -> None:
    """Run all samples in two halves, until any two were apart once: outputs must be the same.

    Where data decide which entries go where, an index that reaches another sample and experts that
    drop what exceeds their capacity show here only: of two that go together always, one may
    take the other's rows for its own.
    """
    order = torch.randperm(run.n, generator=torch.Generator().manual_seed(run.n))
    for digit in range((run.n - 1).bit_length()):
        is_set = (torch.arange(run.n) >> digit) % 2 == 1
        for places in (is_set, ~is_set):
            with torch.no_grad():
                run_without_company(run, loss, shares, order[places])


def _hand_out(
    run: BatchRun,
    loss: Loss,
    shares: Sequence[Tensor],
    w: Tensor,
    rows: Tensor,
    take: Callable[[str, Tensor], None],
) -> None:
    """Hand out the sum, weighted by w (n,), of the gradients of samples without the others.

    Their outputs must be what they are in the batch.
    """
    company, outputs, own_shares = run_without_company(run, loss, shares, rows)
    ends = [x for x in tree_flatten(outputs)[0] if differentiable(x)]
    if len(ends) != len(own_shares):
        raise ProofFailed("the model's outputs for some of the samples are of another kind")
    once = torch.arange(len(company)) < len(rows)  # a sample that went twice counts once
    weights = torch.where(once, w[company], 0)
    weighted_gradients = [g * weights.to(g).view(-1, *(1,) * (g.dim() - 1)) for g in own_shares]
    hand_out_gradients(ends, weighted_gradients, run.weights.parameters, take)


def _whole_gradients(
    run: BatchRun, autograd: AutogradGradients, loss: Loss, w: Tensor, losses: Tensor
) -> None:
    outputs = run.run_plain(run.batch)
    with run.loss_pass():
        plain = loss(copy_objects(outputs))
    compare_losses(run, plain, losses)
    if not plain.requires_grad:
        return
    if run.n > 1:
        if not run.draws_follow_data:
            refuse_company(run, outputs, plain)
        if run.is_random:
            refuse_count(run, groups_without_others(run), unread_outputs(outputs, plain))
        if run.may_mix_samples:
            refuse_losses_in_company(run, loss)
    hand_out_gradients([plain], [w.to(plain)], run.weights.parameters, autograd.take)


def _gradients_of_one(run: BatchRun, loss: Loss, sample: int) -> tuple[Tensor | None, ...]:
    """The gradients of one sample's loss by autograd alone, where the loss cannot be cut off."""
    try:
        (gradients,) = sample_by_sample(run, loss, [sample])
    except GradientNormError as error:  # or rounding: float64, or all samples one by one, will tell
        raise ProofFailed("outputs are not those of ordinary passes without company") from error
    return gradients
