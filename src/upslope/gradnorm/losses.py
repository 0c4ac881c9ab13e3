"""Losses that need no label: what a sample's gradient is taken of when nobody has labelled it.

- `entropy` (Eq. 7): the entropy of the posterior.
- `expected` (Eq. 6): the expectation of a criterion over the classes under the posterior. With
  cross-entropy and the posterior in the graph this is the entropy, number for number; with the
  posterior detached its gradient is zero, everywhere. Other criteria give scores of their own.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upslope.closed_forms import cross_entropy, entropy_of
from upslope.errors import GradientNormError
from upslope.gradnorm.core.model_io import Loss, in_words
from upslope.gradnorm.core.state.stateful_losses import StatefulLoss
from upslope.gradnorm.label_checks import bounds_of_labels, check_labels, require_criterion

Logits = Callable[[Any], Tensor]
"""From a model's output to its logits."""

Criterion = Callable[[Tensor, Tensor], Tensor]
"""From logits (n, c, ...) and labels (n, ...) to losses (n, ...), one an entry."""


def label_free(loss: Loss) -> Loss:
    """Return the loss, marked as one that takes of each sample its outputs alone.

    It may then be called with the outputs of a part of the batch, which saves memory.

    Raises:
        GradientNormError: it is not callable.
    """
    if not callable(loss):
        raise GradientNormError(
            "Expected `loss` to be a function from outputs to one loss per sample but got "
            f"{in_words(loss)}."
        )
    loss.__dict__["label_free"] = True
    return loss


def is_label_free(loss: Loss) -> bool:
    """Whether a loss is marked so."""
    return getattr(loss, "label_free", False) is True


def labelled_by_rows(loss: Loss, labels: Tensor, of_labels: Callable[[Tensor], Loss]) -> Loss:
    """Return the loss, marked as one that takes of each sample its outputs and its labels alone.

    It may then go through a batch in parts, each with its own labels, which saves memory.

    labels: (n, ...). of_labels: makes the loss of other samples from their labels.
    """
    loss.__dict__["rows_of_labels"] = (labels, of_labels)
    return loss


def losses_by_rows(loss: Loss, n: int) -> Callable[[slice], Loss] | None:
    """Return what gives the loss of some samples of a batch of n; None where no mark says how."""
    mark: tuple[Tensor, Callable[[Tensor], Loss]] | None = getattr(loss, "rows_of_labels", None)
    if mark is None:
        return None
    labels, of_labels = mark
    # Labels of another length do not belong to this batch, which the criterion says of all of them;
    # and a criterion of a caller's own may take what is no tensor.
    if not isinstance(labels, Tensor) or labels.dim() == 0 or len(labels) != n:
        return None
    return lambda rows: of_labels(labels[rows])


def identify(loss: Any) -> Any:
    """Return a key that two losses share only if they are the same code, with the same parts.

    Labels in a closure or a default value may be others; functions there, and in a
    `functools.partial`, may not. An object with a method `__call__` is like no other.
    """
    if isinstance(loss, StatefulLoss):
        return identify(loss.loss)
    if isinstance(loss, functools.partial):
        parts = (*loss.args, *loss.keywords.values())
        return (identify(loss.func), tuple(loss.keywords), *map(_identify_part, parts))
    code = getattr(loss, "__code__", None)
    if code is None:
        return None if loss is None else (type(loss), id(loss))
    values = [*(loss.__defaults__ or ()), *(loss.__kwdefaults__ or {}).values()]
    for cell in loss.__closure__ or ():
        with contextlib.suppress(ValueError):  # a name that has no value yet
            values.append(cell.cell_contents)
    return (code, *map(_identify_part, values))


def _identify_part(value: Any) -> Any:
    if callable(value) and not isinstance(value, torch.nn.Module):
        return identify(value)
    return value if isinstance(value, (str, int, float, bool)) else type(value)


def logits_of(outputs: Any) -> Tensor:
    """The logits in what a model returned: a tensor, or an object or dict with `logits`.

    Raises:
        GradientNormError: there is no such tensor, it has no class dimension, or its numbers are
            not floating-point ones.
    """
    logits = outputs if isinstance(outputs, Tensor) else getattr(outputs, "logits", None)
    if logits is None and isinstance(outputs, dict):
        logits = outputs.get("logits")
    if not isinstance(logits, Tensor) or logits.dim() < 2:
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(outputs)
        raise GradientNormError(
            f"Expected logits of shape (n, classes, ...) from the model but got {what}. Pass a "
            "callable as `loss`, from the model's output to one loss per sample."
        )
    if not logits.is_floating_point():
        raise GradientNormError(
            f"Expected floating-point logits from the model but got {logits.dtype}: labels that a "
            "model has settled on, and complex numbers, are no scores of classes. Return the "
            "scores themselves, or pass a callable as `loss`."
        )
    return logits


def classes_first(outputs: Any, dim: int | None = None) -> Tensor:
    """Return logits as (n, classes, ...), for losses that sum over the classes.

    Logits in half precision come back in float32, in which the sum can be trusted.
    dim: the dimension of the classes. If None, it is dimension 1 of (n, classes), of
        (n, classes, height, width) and of (n, classes, depth, height, width), and the last one of
        (n, positions, classes) in an object or dict with `logits`, as models of Hugging Face
        return tokens.

    Raises:
        GradientNormError: as `logits_of`; a tensor (n, a, b) by itself, where `dim` is None; `dim`
            is the samples' own, or is not there; there is a single class.
    """
    logits = logits_of(outputs)
    shape = tuple(logits.shape)
    if dim is None:
        if logits.dim() == 3 and isinstance(outputs, Tensor):
            raise GradientNormError(
                f"Expected logits whose class dimension is certain but shape {shape} may be "
                "(n, classes, positions) or (n, positions, classes). Say which: "
                '`entropy_over(1)` or `entropy_over(2)` in place of "entropy", '
                '`expected(dim=1)` or `expected(dim=2)` in place of "expected".'
            )
        dim = 2 if logits.dim() == 3 else 1
    if not -logits.dim() < dim < logits.dim() or dim == 0:
        raise GradientNormError(
            f"Expected `dim` to be a dimension of the logits other than the samples' (0) but got "
            f"{dim} for logits of shape {shape}."
        )
    logits = logits.movedim(dim, 1)
    if logits.shape[1] < 2:
        raise GradientNormError(
            f"Expected logits of at least two classes but got shape {shape}: over a single class "
            "the posterior is 1, and every score 0. Where the number is the logit of a binary "
            "model, give the other class the logit 0: "
            "`loss=label_free(lambda z: entropy_over(1)(torch.cat((torch.zeros_like(z), z), "
            "dim=1)))`."
        )
    half = logits.dtype in (torch.float16, torch.bfloat16)
    return logits.float() if half else logits


def entropy_over(dim: int | None = None) -> Loss:
    """Return the entropy of the posterior (Eq. 7) as a loss, for classes in a given dimension.

    dim: as in `classes_first`: 1 for (n, classes, positions), -1 for (n, positions, classes).

    Raises:
        GradientNormError: `dim` is no whole number.
    """
    _require_dimension(dim)

    @label_free
    def loss(outputs: Any) -> Tensor:
        return _per_sample(entropy_of(classes_first(outputs, dim)))

    return loss


@label_free
def entropy(outputs: Any) -> Tensor:
    """Return the entropy of the posterior in nats (Eq. 7), (n,); the mean over pixels if any.

    Classes are where `classes_first` finds them; `entropy_over` is told.

    outputs: logits (n, classes, ...).
    """
    return entropy_over()(outputs)


def expected(
    criterion: Criterion = F.cross_entropy, *, posterior: str = "graph", dim: int | None = None
) -> Loss:
    """The expected loss (Eq. 6) of any criterion, sum_i p_i L_i.

    criterion: called as `criterion(logits, labels, reduction="none")`, with classes in dimension 1.
    posterior: "graph" differentiates p_i as well, "detached" holds it constant.
    dim: the dimension of the classes, as in `classes_first`.

    Raises:
        GradientNormError: `posterior` is neither, `criterion` takes other arguments, or `dim` is no
            whole number.
    """
    if not isinstance(posterior, str) or posterior not in ("graph", "detached"):
        raise GradientNormError(
            f'Expected `posterior` to be "graph" or "detached" but got {in_words(posterior)}.'
        )
    require_criterion(criterion)
    _require_dimension(dim)
    if criterion is F.cross_entropy and posterior == "graph":
        return entropy_over(dim)

    @label_free
    def loss(outputs: Any) -> Tensor:
        logits = classes_first(outputs, dim)
        p = logits.softmax(dim=1)
        p = p.detach() if posterior == "detached" else p
        total: Tensor | None = None
        for label in range(logits.shape[1]):
            labels = torch.full_like(logits[:, 0], label, dtype=torch.int64)
            # The share of a class that is masked with -inf is 0, its loss infinite, and the
            # gradient of that may be NaN: other logits are given there, which no gradient leaves.
            is_out = p[:, label, None] == 0
            finite = logits.masked_fill(is_out, 0)
            losses = criterion(finite, labels, reduction="none")  # type: ignore[call-arg]
            term = p[:, label] * losses
            total = term if total is None else total + term
        assert total is not None
        return _per_sample(total)

    return loss


def supervised(targets: Tensor, criterion: Criterion = F.cross_entropy) -> Loss:
    """Return the loss at known labels.

    targets: (n, ...); of cross-entropy, classes as int64, or a probability for every logit.
    criterion: called as `criterion(logits, targets, reduction="none")`, for losses (n, ...), of
        which each sample's are averaged.

    Raises:
        GradientNormError: the criterion does not take these arguments; or, when the loss is
            called, labels of another number or type, or of classes that the model has not.
    """
    require_criterion(criterion)
    is_cross_entropy = criterion is F.cross_entropy
    bounds = bounds_of_labels(targets) if is_cross_entropy else (0, 0)

    def loss(outputs: Any) -> Tensor:
        logits = logits_of(outputs)
        if is_cross_entropy:
            check_labels(logits, targets, bounds)
            return _per_sample(cross_entropy(logits, targets))
        losses = criterion(logits, targets, reduction="none")  # type: ignore[call-arg]
        return _per_sample(losses)

    return labelled_by_rows(loss, targets, functools.partial(supervised, criterion=criterion))


def _require_dimension(dim: Any) -> None:
    if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
        raise GradientNormError(
            f"Expected `dim` to be None or a whole number, a dimension, but got {in_words(dim)}."
        )


def require_logits(logits: Any) -> None:
    """Refuse what finds no logits.

    Raises:
        GradientNormError: it is not callable.
    """
    if not callable(logits):
        raise GradientNormError(
            "Expected `logits` to be a function from the model's outputs to logits (n, classes) "
            f"but got {in_words(logits)}."
        )


def class_logits(outputs: Any, logits: Logits) -> Tensor:
    """Return logits (n, classes), without gradient.

    outputs: of a model. logits: finds the logits in them.

    Raises:
        GradientNormError: the model has a posterior at every position.
    """
    z = logits(outputs)
    if not isinstance(z, Tensor) or not z.is_floating_point():
        raise GradientNormError(
            f"Expected `logits` to return floating-point logits (n, classes) but got {in_words(z)}."
        )
    z = z.detach()
    if z.dim() != 2:
        raise GradientNormError(
            "Expected logits of shape (n, classes) for the expected gradient length but got "
            f"{tuple(z.shape)}: with a class for every pixel the sum over labels has "
            'classes^pixels terms. Use loss="entropy".'
        )
    return classes_first(z, 1)


def weighted(coefficients: Tensor, logits: Logits) -> Loss:
    """Return the loss sum_i a_i L_i with constants a_i and the cross-entropy L_i at class i.

    coefficients: (n, classes), the a_i. logits: finds the logits in what a model puts out.
    """

    def loss(outputs: Any) -> Tensor:
        log_p = F.log_softmax(logits(outputs), dim=1)
        # Classes that a model masks with -inf have the coefficient 0.
        return -(coefficients * log_p.masked_fill(log_p == -math.inf, 0)).sum(dim=1)

    return loss


def resolve_loss(loss: str | Loss) -> Loss:
    """The loss itself, or the one of this name: "entropy", "expected".

    Raises:
        GradientNormError: there is no loss of this name.
    """
    if callable(loss):
        return loss
    table: dict[str, Loss] = {"entropy": entropy, "expected": expected()}
    if not isinstance(loss, str) or loss not in table:
        raise GradientNormError(
            f"Expected `loss` to be a callable or one of {sorted(table)} but got {in_words(loss)}."
        )
    return table[loss]


def _per_sample(losses: Tensor) -> Tensor:
    return losses.flatten(1).mean(dim=1) if losses.dim() > 1 else losses
