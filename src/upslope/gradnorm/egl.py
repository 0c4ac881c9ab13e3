"""Expected gradient length (Settles, Craven & Ray 2007) and its root-mean-square sibling.

    EGL_n = sum_i p_i ||grad L_i||        rms_n = sqrt(sum_i p_i ||grad L_i||^2)

over the classes i, with L_i the cross-entropy at label i and p the posterior, held constant. All
classes share one forward pass. Truncated to the likeliest classes that hold a stated share of
each sample's posterior, it takes as many backward passes as the most uncertain sample needs.

Of two classes both gradients are multiples of one, that of the difference d of the two logits,

    grad L_1 = -p_2 grad d,    grad L_2 = p_1 grad d,

so that one backward pass has both. Of more classes no gradient is a multiple of another: the
gradients of C classes span C - 1 dimensions, each of which takes a backward pass of its own. The
mean takes one more. The mean square takes C - 1: with the Jacobian J of the logits,

    sum_i p_i ||J^T (p - e_i)||^2 = sum_k ||J^T l_k||^2    where sum_k l_k l_k^T = diag(p) - p p^T,

a matrix of rank C - 1. So it is for each parameter, but not for the sum of their norms. Where the
backward pass may clip or round gradients, each class takes a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upslope.closed_forms import cross_entropy
from upslope.errors import GradientNormError
from upslope.gradnorm.arguments import Call, is_number, reduction, squares_for
from upslope.gradnorm.core.model_io import Inputs, Loss, in_words
from upslope.gradnorm.core.state.restoring import in_turn
from upslope.gradnorm.losses import Logits, class_logits, logits_of, require_logits, weighted
from upslope.gradnorm.parameters import Parameters
from upslope.gradnorm.trace.recording import Recording

Reduce = Callable[[dict[str, Tensor]], Tensor]

PROBES = 4
"""Backward passes spent on bounding what a truncation left out."""


class ExpectedLength(NamedTuple):
    """Expected gradient lengths, and how exact they are.

    scores: (n,). covered: (n,), the share of the posterior that was summed over. error_bound: (n,),
    how far the exact value lies above `scores` at most; zero where nothing was left out.

    By Cauchy and Schwarz, sum_rest p_i ||g_i|| <= sqrt(sum_rest p_i * sum_rest p_i ||g_i||^2). The
    last sum is the mean of ||sum_rest +-sqrt(p_i) g_i||^2 over orthogonal patterns of signs: exact
    for up to four classes left out, and for more an estimate, which the bound doubles. For
    kind="rms" the bound is on the root, and is that last sum's root. Infinite where the backward
    pass may clip or round gradients, as a custom function or a hook may.
    """

    scores: Tensor
    covered: Tensor
    error_bound: Tensor


@in_turn
def expected_gradient_length(
    model: nn.Module,
    inputs: Inputs,
    *,
    share: float = 1.0,
    kind: str = "mean",
    norm: str = "global",
    parameters: Parameters = None,
    max_memory: int | None = None,
    dtype: torch.dtype | None = None,
    logits: Logits = logits_of,
) -> ExpectedLength:
    """Return the expected gradient length of each sample, over the labels that it may have.

    sum_i p_i ||grad L_i|| over the classes i, or for kind="rms" sqrt(sum_i p_i ||grad L_i||^2),
    with the cross-entropy L_i at label i and the posterior p, held constant (Settles, Craven & Ray
    2007). All classes share one forward pass. Each takes a backward pass, but two classes take one,
    and kind="rms" of all classes takes one less than there are.

    model: returns logits (n, classes), or what `logits` finds them in.
    inputs: (n, ...) or any that the model takes.
    share: the share of each sample's posterior to sum over, in (0, 1]; 1 is exact.
    kind: "mean" or "rms".
    norm, parameters, max_memory, dtype: as of `gradient_norms`.
    logits: from the outputs to the logits; by default as the named losses find them.

    Raises:
        GradientNormError: as `gradient_norms`; `share` outside (0, 1]; unknown `kind`.
    """
    if not is_number(share) or not 0 < share <= 1:
        raise GradientNormError(
            f"Expected `share` to be a number in (0, 1] but got {in_words(share)}."
        )
    share = float(share)  # tensors are not compared with fractions
    if not isinstance(kind, str) or kind not in ("mean", "rms"):
        raise GradientNormError(f'Expected `kind` to be "mean" or "rms" but got {in_words(kind)}.')
    require_logits(logits)
    reduce = reduction(norm)
    call = Call.of(model, inputs, parameters, max_memory, dtype)
    with call.recordings() as records:
        lengths = [_length(record, share, kind, norm, reduce, logits) for record in records]
    return ExpectedLength(*(torch.cat(rows) for rows in zip(*lengths, strict=True)))


def _length(
    record: Recording,
    share: float,
    kind: str,
    norm: str,
    reduce: Reduce,
    logits: Logits,
) -> ExpectedLength:
    """Return the lengths of the samples of one forward pass; `reduce` is that of the norm."""
    z = class_logits(record.outputs, logits)
    p, labels = z.softmax(dim=1).sort(dim=1, descending=True, stable=True)
    # The likeliest classes up to the first that completes the share.
    is_kept = ~(p.cumsum(dim=1) - p >= share) if share < 1 else torch.ones_like(p, dtype=torch.bool)
    # A class that is masked with -inf has an infinite loss, and adds nothing. NaN is kept: its loss
    # is refused.
    is_kept &= ~(p == 0)
    total = p.new_zeros(len(p), dtype=torch.float64)
    squares = squares_for(norm)
    power = 1 if kind == "mean" else 2
    # Gradients of which some are made of others need a linear backward pass.
    if z.shape[1] == 2 and record.run.is_linear and bool((p > 0).all()):
        return _length_of_two(record, p, is_kept, power, norm, reduce, logits)
    if power == 2 and share == 1 and norm == "global" and record.run.is_linear:
        for coefficients in _factor_of_covariance(p, labels):
            loss = weighted(coefficients, logits)
            total += reduce(record.reduce_per_sample(squares, loss)).square()
        return ExpectedLength(total.sqrt(), p.sum(dim=1), torch.zeros_like(total))
    for rank in range(max(is_kept.sum(dim=1).tolist(), default=0)):
        loss = _at(labels[:, rank], is_kept[:, rank], logits)
        norms = reduce(record.reduce_per_sample(squares, loss))
        # A sample that has its share already adds nothing, though the others need this class.
        total += torch.where(is_kept[:, rank], p[:, rank].double() * norms**power, 0)
    bound = _bound(record, reduce, p, labels, is_kept, power, logits)
    score = total if power == 1 else total.sqrt()
    return ExpectedLength(score, torch.where(is_kept, p, 0).sum(dim=1), bound)


def _factor_of_covariance(p: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield vectors l_k, (n, classes), with sum_k l_k l_k^T = diag(p) - p p^T.

    Each sets one class against all that are less likely, in proportion to p: no digits cancel.

    p, labels: (n, classes), the posterior in descending order, and the classes in that order.
    """
    shares = p.double()
    rest = shares.flip(1).cumsum(dim=1).flip(1)  # of a class and all that are less likely
    for k in range(p.shape[1] - 1):
        below = rest[:, k + 1, None]
        if not bool((below > 0).any()):
            return
        scale = (shares[:, k, None] * below / rest[:, k, None]).sqrt()
        vectors = torch.cat([torch.zeros_like(shares[:, :k]), scale], dim=1)
        vectors = torch.cat([vectors, -scale * shares[:, k + 1 :] / below], dim=1)
        vectors = vectors.masked_fill(below == 0, 0)  # of a sample with fewer classes
        yield torch.zeros_like(p).scatter_(1, labels, vectors.to(p))


def _length_of_two(
    record: Recording,
    p: Tensor,
    is_kept: Tensor,
    power: int,
    norm: str,
    reduce: Reduce,
    logits: Logits,
) -> ExpectedLength:
    """Return the lengths for two classes, of one backward pass.

    p, is_kept: (n, 2), the posterior in descending order, and which of both are summed over.
    """
    loss = weighted(torch.tensor([1.0, -1.0]).to(p), logits)
    norms = reduce(record.reduce_per_sample(squares_for(norm), loss))
    share = p.double()
    terms = share * (share.flip(1) * norms[:, None]) ** power
    score, exact = torch.where(is_kept, terms, 0).sum(dim=1), terms.sum(dim=1)
    if power == 2:
        score, left_out = score.sqrt(), (exact - score).clamp(min=0).sqrt()
    else:
        left_out = (exact - score).clamp(min=0)
    return ExpectedLength(score, torch.where(is_kept, p, 0).sum(dim=1), left_out)


def _bound(
    record: Recording,
    reduce: Reduce,
    p: Tensor,
    labels: Tensor,
    is_kept: Tensor,
    power: int,
    logits: Logits,
) -> Tensor:
    """Return the bound on what was left out of the sums, (n,); see `ExpectedLength`."""
    rest = torch.where(is_kept, 0, p)
    left_out = ((~is_kept) & (p > 0)).sum(dim=1)
    if not bool(left_out.any()):
        return p.new_zeros(len(p), dtype=torch.float64)
    if not record.run.is_linear:  # the gradient of a sum of losses tells nothing of theirs
        return torch.where(left_out > 0, torch.inf, 0.0).double()
    # Of each parameter tensor by itself, for the sum of their norms obeys the bound as well.
    second: dict[str, Tensor] = {}
    place = (torch.cumsum(~is_kept, dim=1) - 1).clamp(min=0)  # 0, 1, 2 ... among those left out
    for pattern in _signs():
        roots = rest.sqrt() * pattern.to(p)[place % PROBES]
        roots = roots * _block_signs(place // PROBES, p)
        coefficients = torch.zeros_like(p).scatter_(1, labels, roots)
        for name, square in record.squared_norms(weighted(coefficients, logits)).items():
            second[name] = second.get(name, 0) + square.double() / PROBES
    root: Tensor = reduce(second) * torch.where(left_out > PROBES, 2, 1)
    return root if power == 2 else rest.sum(dim=1).double().sqrt() * root


def _signs() -> Iterator[Tensor]:
    """Yield the rows of the Hadamard matrix of order four: orthogonal patterns of signs."""
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    yield from torch.kron(two, two)


def _block_signs(block: Tensor, like: Tensor) -> Tensor:
    """Return a fixed sign for each block of classes, so that blocks are set against each other.

    block: the number of each class's block, in any shape. like: whose type the signs have.
    """
    return torch.where((block * 0x9E3779B1) >> 16 & 1 == 1, -1.0, 1.0).to(like)


def _at(labels: Tensor, is_counted: Tensor, logits: Logits) -> Loss:
    """Return the loss that is cross-entropy at some labels, and zero for samples not counted.

    labels: (n,). is_counted: (n,) bool.
    """

    def loss(outputs: Any) -> Tensor:
        losses = cross_entropy(logits(outputs), labels)
        return losses.masked_fill(~is_counted, 0)

    return loss
