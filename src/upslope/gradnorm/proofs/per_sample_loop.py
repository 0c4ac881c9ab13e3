"""The last resort: the gradient of one sample at a time, by ordinary means.

Always right, and slow. Where a sample's loss depends on that sample's output alone, a sample costs
a forward and a backward pass of its own, and its outputs must be those that it has in the batch;
elsewhere a backward pass of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from upslope.errors import GradientNormError
from upslope.gradnorm.core.layouts.separation import differ, scales
from upslope.gradnorm.core.model_io import (
    Batch,
    Loss,
    check_losses,
    copy_objects,
    differentiable,
    tensors_in,
)
from upslope.gradnorm.core.uses.reductions import Reduction
from upslope.gradnorm.proofs.at_outputs import loss_mixes
from upslope.gradnorm.proofs.backward import one_hot, pull_back
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.count import refuse_count, undecided_error
from upslope.gradnorm.proofs.independence import model_may_mix_samples
from upslope.gradnorm.proofs.mixing import (
    compare_outputs,
    groups_without_others,
    model_mixes,
    refuse_company,
    refuse_losses_in_company,
    refuse_other_outputs,
    shared_tensors,
    unread_outputs,
    unused_outputs,
)
from upslope.gradnorm.proofs.own_outputs import gradients_at_own_outputs, shares_alone
from upslope.gradnorm.proofs.passes import DrawsFollowData, run_without_others

_APART = {torch.float64: 1e-7, torch.float32: 3e-2}
_APART_HALF = 0.1
"""The share of a gradient that rounding may account for, between a sample alone and in the batch:
an activation that rounds to the other side of a kink moves a thousandth of it."""


_ROUNDING = 1e3
"""Steps of the type, of the gradients of the whole model, that may be what rounding leaves."""


def sample_by_sample(
    run: BatchRun, loss: Loss, samples: Sequence[int]
) -> Iterator[tuple[Tensor | None, ...]]:
    """Yield the gradients of all parameters, for each of `samples` in turn.

    Raises:
        GradientNormError: the loss is not n finite numbers, or samples are mixed.
    """
    parameters: list[Tensor] = list(run.weights.parameters.values())
    shares = gradients_at_own_outputs(run, loss, parameters)
    # In its place of the whole batch a sample costs as much as the batch, so that only proofs go
    # that way with random numbers.
    in_the_batch = run.is_random and not run.checks_company
    # The loss needs the whole batch: its parameters, or outputs without samples in front.
    if shares is None or in_the_batch or run.draws_follow_data:
        yield from _in_the_batch(run, loss, parameters, samples)
        return
    unused_places = unused_outputs(run.outputs, shares)
    if run.is_random and run.n > 1:
        refuse_count(run, groups_without_others(run), unused_places)
    company = _in_company(run, shares) if run.checks_company else None
    for place, i in enumerate(samples):
        rows, outputs = run_without_others(run, torch.tensor([i]))
        try:
            compare_outputs(run, outputs, rows, unused_places, may_be_shorter=True)
        except DrawsFollowData:  # the rest goes by passes that replay the same draws
            refuse_unless_provable(run)
            yield from sample_by_sample(run, loss, samples[place:])
            return
        ends = [x for x in tree_flatten(outputs)[0] if differentiable(x)]
        own_shares = shares_alone(run, loss, shares, outputs, rows)
        for row in own_shares:
            row[1:] = 0  # a sample that went twice counts once
        gradients = pull_back(ends, own_shares, parameters)
        if company is not None:
            rest = [_row_alone(share, i) for share in shares]
            _refuse_company(run, i, gradients, company, rest)
        yield gradients


def reduce_one_by_one(run: BatchRun, reduction: Reduction, loss: Loss) -> dict[str, Tensor]:
    """Return name -> (n, ...): a reduction of each gradient, of the parameters that any reaches.

    run: the batch. reduction: what is wanted of each gradient. loss: of whose gradients.

    Raises:
        GradientNormError: as `sample_by_sample`.
    """
    parameters = run.weights.parameters
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    names_reached: set[str] = set()
    for gradients in sample_by_sample(run, loss, range(run.n)):
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            if gradient is not None:
                names_reached.add(name)
            dense = torch.zeros_like(parameter) if gradient is None else gradient
            # Embeddings with `sparse=True` have sparse gradients, which have no norm per row
            # here.
            dense = dense.to_dense() if dense.is_sparse else dense
            # In double, where no square leaves the range.
            double = torch.promote_types(dense.dtype, torch.float64)
            rows[name].append(reduction.of_dense(name, dense.detach()[None].to(double)))
    return {name: torch.cat(rows[name]) for name in parameters if name in names_reached}


def _in_company(run: BatchRun, shares: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs of a pass of all samples, to hold each sample's gradient against.

    Raises:
        GradientNormError: what one sample's loss asks of the outputs reaches another's inputs.
    """
    inputs, outputs = _run_from_inputs(run)
    ends = [x for x in tree_flatten(outputs)[0] if differentiable(x)]
    if ends:
        # Where it is not there, the gradients of the parameters that follow are what tells.
        inputs = _with_gradient(inputs, lambda x: pull_back(ends, shares, [x]))
    if inputs and ends and not run.has_hooks:
        u = scales(run.n, shares[0])
        gradients_scaled = [g * u.to(g).view(-1, *(1,) * (g.dim() - 1)) for g in shares]
        _refuse_mixing(
            run,
            inputs,
            pull_back(ends, shares, inputs),
            pull_back(ends, gradients_scaled, inputs),
            u,
            lambda i: pull_back(ends, [_row_alone(share, i) for share in shares], inputs),
        )
    return ends


def _run_from_inputs(run: BatchRun) -> tuple[list[Tensor], Any]:
    """Run the model on all samples; return the inputs that gradients can reach, and the outputs."""
    batch = run.batch
    inputs = [leaf.detach().clone().requires_grad_() for leaf in _floating_inputs(batch)]
    try:
        outputs = run.run_plain(batch, inputs)
        # Of nested gradients PyTorch cannot tell the rows: there, outputs and parameters tell.
        return [x for x in inputs if not x.is_nested], outputs
    # What takes no tensor that requires a gradient (`numpy()`, writes of some kinds) does take the
    # caller's own.
    except RuntimeError:
        return [], run.run_plain(batch)


def _floating_inputs(batch: Batch) -> list[Tensor]:
    """Return the floating inputs with rows of samples."""
    pairs = zip(batch.leaves, batch.per_sample, strict=True)
    return [leaf for leaf, has_rows in pairs if has_rows and leaf.is_floating_point()]


def _with_gradient(inputs: Sequence[Tensor], pull: Callable[[Tensor], Any]) -> list[Tensor]:
    """Return the inputs at which there is a gradient.

    A model may use operators on its raw inputs that have no derivative (`unique`, `heaviside`): no
    one asks for one in an ordinary pass. pull: takes the gradient at one input.
    """
    inputs_with_gradient = []
    for x in inputs:
        try:
            pull(x)
        except (NotImplementedError, RuntimeError) as error:
            # An input behind an operator that autograd does not know has no gradient to compare.
            if "derivative for" not in str(error):
                raise
        else:
            inputs_with_gradient.append(x)
    return inputs_with_gradient


def _refuse_company(
    run: BatchRun,
    sample: int,
    gradients_alone: Sequence[Tensor | None],
    ends: Sequence[Tensor],
    shares: Sequence[Tensor],
) -> None:
    """Refuse if the gradient of a sample's loss is another one in the batch than alone.

    gradients_alone: of each parameter. ends, shares: the outputs of the batch, and the gradients of
    this sample's loss at them.

    Raises:
        GradientNormError: it is; or both are what rounding leaves.
    """
    in_company = pull_back(ends, shares, list(run.weights.parameters.values()))
    pairs = [
        (a, b)
        for a, b in zip(gradients_alone, in_company, strict=True)
        if not (a is None and b is None)
    ]
    size = sum(_sum_of_sizes(pair) for pair in pairs) / 2
    apart_at_most = _APART.get(run.precision, _APART_HALF)
    for a, b in pairs:
        apart = (0 if a is None else a) - (0 if b is None else b)
        if float(torch.as_tensor(apart).abs().sum()) > apart_at_most * size:
            every = [p for p in run.model.parameters() if p.requires_grad]
            # Of a loss that is constant all gradients cancel, but not those of single outputs.
            others = [_times_random_numbers(share) for share in shares]
            pulls = (pull_back(ends, some, every) for some in (shares, others))
            largest = max(map(_sum_of_sizes, pulls))
            if size <= _ROUNDING * torch.finfo(run.precision).eps * largest:
                raise _rounding_error(run, size / largest)
            raise model_mixes(run, torch.tensor([sample]))


def _times_random_numbers(share: Tensor) -> Tensor:
    """Return a gradient at an output, each entry times a number of its own."""
    factors = torch.randn(share.shape, generator=torch.Generator().manual_seed(0))
    return share * factors.to(share)


def _sum_of_sizes(gradients: Sequence[Tensor | None]) -> float:
    return sum(float(g.abs().sum()) for g in gradients if g is not None)


def _rounding_error(run: BatchRun, share: float) -> GradientNormError:
    """The error for gradients that are zero but for rounding. share: of those of the model."""
    names = list(run.weights.parameters)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return GradientNormError(
        f"Expected parameters with gradients but those of {', '.join(names[:3])}{more} are what "
        f"rounding leaves of terms that cancel, {share:.0e} of the gradients of the whole model: "
        "the loss does not depend on these parameters, as it does not on the biases of keys in an "
        "attention, or on biases ahead of an instance normalisation, or it is constant, as the "
        "squared norm of normalised outputs. Their norms would rank nothing: ask for others, or "
        "for more, or take another loss."
    )


def _in_the_batch(
    run: BatchRun, loss: Loss, parameters: list[Tensor], samples: Sequence[int]
) -> Iterator[tuple[Tensor | None, ...]]:
    """Where a sample cannot go alone: one pass forward, and one backward for each sample."""
    inputs, outputs = _run_from_inputs(run)
    with run.loss_pass():
        losses = loss(copy_objects(outputs))
    check_losses(losses, run.n, run.batch.first)
    refuse_other_outputs(run, outputs, losses)
    if run.is_random and run.checks_company:
        refuse_count(run, groups_without_others(run), unread_outputs(outputs, losses))
    if not losses.requires_grad:
        for _ in samples:
            yield (None,) * len(parameters)
        return
    if run.n > 1 and not run.has_hooks:
        _refuse_mixing_at_outputs(run, outputs, losses)
    input_count = max(1, len(_floating_inputs(run.batch)))
    inputs = _with_gradient(inputs, lambda x: pull_back([losses], [torch.ones_like(losses)], [x]))
    if run.n > 1 and len(inputs) < input_count:
        # Gradients cannot tell whether samples meet: outputs without the others do.
        _refuse_company_in_the_batch(run, outputs, losses)
        refuse_losses_in_company(run, loss)
    if run.n > 1 and inputs and not run.has_hooks:
        u = scales(run.n, losses)
        shares = torch.ones_like(losses), u
        once, gradients_scaled = (pull_back([losses], [share], inputs) for share in shares)
        _refuse_mixing(
            run,
            inputs,
            once,
            gradients_scaled,
            u,
            lambda i: pull_back([losses], [one_hot(losses, i)], inputs),
        )
    if run.may_mix_samples:
        refuse_losses_in_company(run, loss)
    for i in samples:
        yield pull_back([losses], [one_hot(losses, i)], parameters)


def _refuse_company_in_the_batch(run: BatchRun, outputs: Any, losses: Tensor) -> None:
    """Refuse outputs that change with the company, by passes that meet the same random numbers.

    outputs, losses: of a pass of the whole batch, with their graph.

    Raises:
        GradientNormError: they change, or it cannot be told.
    """
    while not run.draws_follow_data:
        try:
            refuse_company(run, outputs, losses)
            break
        except DrawsFollowData:  # twice at most: the run has taken note of what they follow
            refuse_unless_provable(run)
    if run.draws_follow_counts:  # the others have kept their whole numbers, words among them
        refuse_count(run, groups_without_others(run), unread_outputs(outputs, losses))


def _refuse_mixing(
    run: BatchRun,
    inputs: Sequence[Tensor],
    once: Sequence[Tensor | None],
    gradients_scaled: Sequence[Tensor | None],
    u: Tensor,
    from_one: Callable[[int], Sequence[Tensor | None]],
) -> None:
    """Refuse if the loss of a sample feels the inputs of another (`separation`).

    Powers of two tell all samples apart at once where the backward pass is linear. Where it is not
    (clipped or rounded gradients), or samples do mix, the losses go backward one by one.

    once, gradients_scaled: the gradients at the inputs, of the losses and of u times the losses.
    from_one: those of the loss of one sample.

    Raises:
        GradientNormError: it does.
    """
    for x, g, g_scaled in zip(inputs, once, gradients_scaled, strict=True):
        if g is None or g_scaled is None or x.numel() == 0:
            continue
        # Sums over positions may go in another order: what counts is the size of all of them.
        size = g.abs().amax(dim=tuple(range(1, g.dim())), keepdim=True).expand_as(g)
        if bool(differ(g_scaled, g, u, size).any()):
            break
    else:
        return
    for i in range(run.n):
        for g in from_one(i):
            if g is not None and g.numel():
                felt = (g.isfinite() & (g != 0)).reshape(len(g), -1).any(dim=1).cpu()
                felt[i] = False
                if bool(felt.any()):
                    raise model_mixes(run, felt.nonzero().flatten())


def _refuse_mixing_at_outputs(run: BatchRun, outputs: Any, losses: Tensor) -> None:
    """Refuse if the loss of a sample feels the outputs of another, where inputs are out of reach.

    Raises:
        GradientNormError: it does.
    """
    tensors = tensors_in(outputs)
    ends = [x for x in tensors if x.requires_grad and x.shape[:1] == (run.n,)]
    if not ends:
        return
    u = scales(run.n, losses)
    once, gradients_scaled = (
        pull_back([losses], [share], ends) for share in (torch.ones_like(losses), u)
    )
    for x, g, g_scaled in zip(ends, once, gradients_scaled, strict=True):
        if g is None or g_scaled is None or x.numel() == 0:
            continue
        if not bool(differ(g_scaled, g, u).any()):
            continue
        if any(tensors[place] is x for place in shared_tensors(run)):
            continue
        for i in range(run.n):  # a model that differentiates itself may not be linear
            (of_one,) = pull_back([losses], [one_hot(losses, i)], [x])
            if of_one is not None:
                felt = (of_one.isfinite() & (of_one != 0)).reshape(run.n, -1).any(dim=1).cpu()
                felt[i] = False
                if bool(felt.any()):
                    raise loss_mixes(felt)


def _row_alone(share: Tensor, i: int) -> Tensor:
    """The gradient at an output that the loss of one sample asks for."""
    share_alone = torch.zeros_like(share)
    share_alone[i] = share[i]
    return share_alone


def refuse_unless_provable(run: BatchRun) -> None:
    """Refuse a model that may mix samples, and whose draws depend on their numbers as well.

    Raises:
        GradientNormError: it does both.
    """
    if run.draws_follow_data and run.may_mix_samples and model_may_mix_samples(run):
        raise undecided_error("a statistic of the batch meets its samples")
