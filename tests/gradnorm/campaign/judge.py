"""Judge the engine's answer for one batch against ordinary autograd.

Two oracles: each sample's loss alone, and each sample's loss in the batch. Where they agree, that
is the right answer. Where they do not, the sample is tried in other company. If its loss or its
gradient changes with the company, the model or the loss mixes samples, and the only right answer
is a refusal, but for one case: where no loss changes and gradients alone are mixed, the gradient
of each sample alone is a right answer as well. If nothing changes, the gradient depends on the
number of samples alone, and that in the batch is right.

The oracles work around a fault of PyTorch 2.13: batch and instance normalisation of one sample
have a wrong input gradient for some strides of the gradient that comes in.
"""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from oracle import assert_unchanged, call, state
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from campaign.case import Batch, Case, first_tensor
from upslope.errors import GradientNormError
from upslope.gradnorm import gradient_norms

NORMS = ("global", "tensor-sum")
OUTCOMES = ("exact", "refused", "slow and said so", "zeros without a word", "wrong", "crashed")
FLOOR = 1e-7
"""Of the largest norm of a batch: a norm smaller than this is rounding (squares are summed)."""
NOISE = 17
"""The seed of every pass: a model that draws noise meets the same in the batch, each time."""


@dataclass(frozen=True)
class Verdict:
    """outcome: one of OUTCOMES, or "not tried" where the model fails. mixes: by the oracle."""

    outcome: str
    detail: str
    mixes: bool = False

    @property
    def good(self) -> bool:
        """Whether the engine kept its promise."""
        return self.outcome in ("exact", "refused", "slow and said so", "not tried")


@dataclass(frozen=True)
class Truth:
    """gradients: by sample and parameter, of each right answer; none where only a refusal is right.

    mixes: whether samples are mixed. reached: whether any loss depends on any parameter.
    """

    gradients: list[list[list[Tensor | None]]]
    mixes: bool
    reached: bool
    why: str = ""

    def norms(self, norm: str) -> list[Tensor]:
        """The right answers, (n,) float64 each."""
        return [torch.stack([length(row, norm) for row in rows]) for rows in self.gradients]


def length(gradient: list[Tensor | None], norm: str) -> Tensor:
    """The norm of one gradient."""
    squares = torch.stack([torch.zeros(()).double() if g is None else square(g) for g in gradient])
    return squares.sum().sqrt() if norm == "global" else squares.sqrt().sum()


def square(gradient: Tensor) -> Tensor:
    """The squared norm, in float64."""
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return dense.abs().double().square().sum()


def pointwise_entropy(outputs: Any, _: Any = None) -> Tensor:
    """The entropy of the posterior; written here again, for the oracle is independent."""
    logits = first_tensor(outputs)
    p = logits.softmax(dim=1)
    return torch.special.entr(p).sum(dim=1).flatten(1).mean(dim=1) if logits.dim() > 2 else (
        torch.special.entr(p).sum(dim=1)
    )  # fmt: skip


def find_truth(case: Case, model: nn.Module, batch: Batch, others: Callable[[int], Batch]) -> Truth:
    """The right answer for one batch. others: from a seed to another batch of as many samples.

    Raises:
        Exception: whatever the model raises by itself on the whole batch.
    """
    loss = pointwise_entropy if isinstance(case.loss, str) else case.loss

    def differentiated(part: Batch, wanted: list[int]) -> tuple[Tensor, list[list[Tensor | None]]]:
        net = copy.deepcopy(model) if case.stateful else model
        parameters = [p for p in net.parameters() if p.requires_grad]
        torch.manual_seed(NOISE)
        losses = loss(call(net, part.inputs), part.targets)
        if losses.shape != (part.n,):
            raise ValueError(f"the case's loss has shape {tuple(losses.shape)}")
        if not losses.requires_grad:
            return losses, [[None] * len(parameters) for _ in wanted]
        return losses.detach(), [differentiate(losses[i], parameters) for i in wanted]

    n = batch.n
    with ContiguousGradients():
        losses, together = differentiated(batch.rows(list(range(n))), list(range(n)))
        reached = any(g is not None for row in together for g in row)
        alone, apart, losses_differ = list(together), [], False
        for i in range(n):
            try:
                own, (alone[i],) = differentiated(batch.rows([i]), [0])
            except Exception:  # a model that takes no single sample
                continue
            if not torch.allclose(own[0], losses[i], rtol=case.tolerance, atol=1e-9):
                losses_differ = True
            if not close(alone[i], together[i], case.tolerance):
                apart.append(i)
        for i, seed in itertools.product(apart, (1, 2, 3)):
            _, (elsewhere,) = differentiated(others(seed).with_row(i, batch), [i])
            if not close(elsewhere, together[i], case.tolerance):
                why = f"sample {i} of {n} has another gradient in company"
                return Truth([] if losses_differ else [alone], True, reached, why)
    answers = [together] if losses_differ or not apart else [together, alone]
    return Truth(answers, False, reached)


NORMALISATIONS = (F.batch_norm, F.instance_norm, torch.batch_norm, torch.instance_norm)


class ContiguousGradients(TorchFunctionMode):
    """Lays out the gradients that reach normalisations as their outputs are laid out."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in NORMALISATIONS and out.requires_grad:
            out.register_hook(lambda gradient: gradient.contiguous())
        return out


def minus(first: Tensor | None, second: Tensor | None) -> Tensor:
    """The difference, in which None is zero."""
    first = first.to_dense() if first is not None and first.is_sparse else first
    second = second.to_dense() if second is not None and second.is_sparse else second
    if first is None:
        assert second is not None
        return -second
    return first if second is None else first - second


def differentiate(loss: Tensor, parameters: list[nn.Parameter]) -> list[Tensor | None]:
    """The gradient of one loss; the graph stays."""
    try:
        return list(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True))
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
    # Reentrant checkpoints work with `backward` alone.
    held = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    loss.backward(retain_graph=True)
    gradients = [p.grad for p in parameters]
    for p, grad in zip(parameters, held, strict=True):
        p.grad = grad
    return gradients


def close(first: list[Tensor | None], second: list[Tensor | None], tolerance: float) -> bool:
    """Whether two gradients agree, relative to their length."""
    apart, size = torch.zeros(()).double(), torch.zeros(()).double()
    for a, b in zip(first, second, strict=True):
        if a is not None or b is not None:
            apart = apart + square(minus(a, b))
            size = size + sum(square(x) for x in (a, b) if x is not None)
    return bool(apart.sqrt() <= tolerance * size.sqrt() + 1e-10)


def judge(case: Case, model: nn.Module, batch: Batch, truth: Truth, norm: str) -> Verdict:
    """Ask the engine, and compare."""
    mixes = truth.mixes
    loss: Any = case.loss
    if not isinstance(loss, str):
        loss = pointwise_with(case.loss, batch.targets)  # type: ignore[arg-type]
    asked = copy.deepcopy(model) if case.stateful else model
    before = state(asked)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.manual_seed(NOISE)
            norms = gradient_norms(asked, batch.inputs, loss, norm=norm)
    except GradientNormError as error:
        return Verdict("refused", f"{type(error).__name__}: {str(error)[:300]}", mixes)
    except Exception as error:
        return Verdict("crashed", f"{type(error).__name__}: {str(error)[:200]}", mixes)
    try:
        assert_unchanged(before, state(asked))
    except AssertionError as error:
        return Verdict("wrong", f"the model was changed: {str(error)[:100]}", mixes)
    told = "; ".join(str(w.message) for w in said)
    if not truth.gradients:
        return Verdict("wrong", f"answered though samples are mixed: {truth.why}", mixes)
    if not truth.reached:
        return Verdict("wrong", "answered though no parameter is reached")
    answers = truth.norms(norm)
    right = answers[0]
    if norms.shape != right.shape:
        return Verdict("wrong", f"shape {tuple(norms.shape)} instead of {tuple(right.shape)}")
    if not any(agree(norms, answer, case.tolerance) for answer in answers):
        pair = f"ours {shown(norms)}, right {shown(right)}"
        return Verdict("wrong", pair + (f"; said: {told[:100]}" if told else ""), mixes)
    if not bool(right.any()) and not told:
        return Verdict("zeros without a word", f"n = {len(right)}")
    slow = any(word in told for word in ("sample by sample", "one by one", "slow"))
    return Verdict("slow and said so", told[:200]) if slow else Verdict("exact", told[:200])


def agree(norms: Tensor, right: Tensor, tolerance: float) -> bool:
    """Whether norms are the right ones, but for rounding."""
    finite = torch.isfinite(right)
    if not torch.equal(finite, torch.isfinite(norms)):
        return False
    norms, right = norms[finite], right[finite]
    if not len(right):
        return True
    bound = tolerance * right + FLOOR * right.max() + 1e-8
    return bool(((norms - right).abs() <= bound).all())


def pointwise_with(loss: Callable[[Any, Any], Tensor], targets: Any) -> Callable[[Any], Tensor]:
    """The loss as the engine takes it."""
    return lambda outputs: loss(outputs, targets)


def shown(norms: Tensor) -> str:
    """A few of them, in short."""
    return "[" + ", ".join(f"{v:.6g}" for v in norms.tolist()[:8]) + "]"


def not_tried(error: Exception) -> Verdict:
    """The verdict where the model fails by itself."""
    return Verdict("not tried", f"the model itself: {type(error).__name__}: {str(error)[:200]}")


def draw_company(case: Case, n: int, seed: int, which: int) -> Batch:
    """Another batch of n."""
    return case.draw(n, seed + 7919 * which)


def try_case(case: Case, seed: int = 0, norms: tuple[str, ...] = NORMS) -> list[Verdict]:
    """The verdicts on a case: its batches in turn, through the same model, for each norm."""
    try:
        model = case.build(seed)
    except Exception as error:
        return [not_tried(error)]
    verdicts = []
    for turn, n in enumerate(case.sizes):
        batch = case.draw(n, 1000 * seed + turn)
        try:
            company = functools.partial(draw_company, case, n, 1000 * seed + turn)
            truth = find_truth(case, model, batch, company)
        except Exception as error:
            verdicts.append(not_tried(error))
            continue
        verdicts += [judge(case, model, batch, truth, norm) for norm in norms]
    return verdicts
