"""The root-mean-square gradient length by random probes, for many classes.

    rms_n^2 = sum_i p_i ||grad L_i||^2 = E ||sum_i s_i sqrt(p_i) grad L_i||^2

for independent random signs s_i: the trace of a Gram matrix of class gradients, by Hutchinson's
estimator (1990). The inner sum is the gradient of one loss, so that a probe costs one backward pass
whatever the number of classes. How far the probes are spread gives a standard error.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from upslope.gradnorm.arguments import Call, reduction, whole_number
from upslope.gradnorm.core.model_io import Inputs
from upslope.gradnorm.core.state.restoring import in_turn
from upslope.gradnorm.losses import Logits, class_logits, logits_of, require_logits, weighted
from upslope.gradnorm.parameters import Parameters


class Estimate(NamedTuple):
    """Estimated lengths. scores: (n,) float64. standard_error: (n,), from the spread of probes."""

    scores: Tensor
    standard_error: Tensor


@in_turn
def estimated_rms_length(
    model: nn.Module,
    inputs: Inputs,
    *,
    probes: int = 16,
    seed: int = 0,
    parameters: Parameters = None,
    max_memory: int | None = None,
    logits: Logits = logits_of,
) -> Estimate:
    """Return an estimate of `expected_gradient_length(..., kind="rms")` from random probes.

    sqrt(sum_i p_i ||grad L_i||^2) over the classes i is the root of the mean, over random signs
    s_i, of ||sum_i s_i sqrt(p_i) grad L_i||^2 (Hutchinson 1990): a probe costs one backward pass
    whatever the number of classes, and the spread of the probes gives a standard error.

    model, inputs, parameters, max_memory, logits: as of `expected_gradient_length`.
    probes: backward passes; with as many classes or fewer, the exact sum costs no more.
    seed: of the signs; every sample meets the same ones, so that errors largely cancel in ranks.

    Raises:
        GradientNormError: as `gradient_norms`; fewer than two probes, which have no spread; a
            backward pass that may clip or round gradients, as a custom function or a hook may.
    """
    probes, seed = whole_number("probes", probes, at_least=2), whole_number("seed", seed)
    require_logits(logits)
    norm = reduction("global")
    call = Call.of(model, inputs, parameters, max_memory)
    squares_of = []
    with call.recordings() as records:
        for record in records:
            record.run.require_linear('Take `expected_gradient_length(..., kind="rms")`.')
            z = class_logits(record.outputs, logits)
            p = z.double().softmax(dim=1)
            rng = torch.Generator().manual_seed(seed % 2**64)  # as torch takes those below zero
            squares = []
            for _ in range(probes):
                signs = torch.randint(2, (p.shape[1],), generator=rng).to(p) * 2 - 1
                roots = signs * p.sqrt()
                # Coefficients that sum to zero have the same gradient. In float32 the root of a
                # sure class would round away those of all others.
                roots -= p * roots.sum(dim=1, keepdim=True)
                squares.append(norm(record.squared_norms(weighted(roots.to(z), logits))) ** 2)
            squares_of.append(torch.stack(squares, dim=1))
    every = torch.cat(squares_of)  # (n, probes)
    scores = every.mean(dim=1).sqrt()
    spread = every.std(dim=1) if len(every) else scores  # of no samples PyTorch warns
    # d sqrt(m) = dm / (2 sqrt(m))
    error = spread / probes**0.5 / (2 * scores).clamp_min(torch.finfo(scores.dtype).tiny)
    return Estimate(scores, error)
