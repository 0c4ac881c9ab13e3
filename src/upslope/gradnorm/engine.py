"""Exact per-sample gradient norms of any network: `gradient_norms`.

    ||dL(f(x_n)) / d theta||        for every sample n of a batch, over all parameters theta

from one batched forward and one batched backward pass, in which no parameter's gradient is formed
(paper: Eq. 5 says what they are good for; Eq. 6 and 7 say of which loss).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upslope.errors import warn_user
from upslope.gradnorm.arguments import Call, reduction, squares_for
from upslope.gradnorm.core.model_io import Inputs, Loss
from upslope.gradnorm.core.state.restoring import in_turn
from upslope.gradnorm.losses import resolve_loss
from upslope.gradnorm.parameters import Parameters


@in_turn
def gradient_norms(
    model: nn.Module,
    inputs: Inputs,
    loss: str | Loss,
    *,
    norm: str = "global",
    parameters: Parameters = None,
    max_memory: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The norm of each sample's loss gradient with respect to the model's parameters, (n,).

    model: any module that treats each sample by itself; it is left as it was found.
    inputs: what the model takes, samples in dimension 0: a tensor, or a tuple or dict of them.
    loss: from the model's output to one loss per sample, (n,); or "entropy" (Eq. 7) or "expected"
        (Eq. 6, with cross-entropy), for models that return logits (n, classes, ...).
    norm: "global", the norm of the whole gradient (the paper's text), or "tensor-sum", the sum of
        the norms of each parameter tensor's gradient (the authors' code).
    parameters: which parameters; all that require a gradient by default.
    max_memory: bytes of scratch beyond what an ordinary forward and backward pass takes.
    dtype: torch.bfloat16 or torch.float16 for products of matrices and convolutions, as by
        `torch.autocast`. Faster where the processor has them, and approximate: three digits of a
        score, and its rank almost always. Networks in float64 stay as they are.

    Raises:
        GradientNormError: the model mixes samples (batch normalisation in training mode, say), the
            loss is reduced over the batch or not finite, or no parameter is asked for.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)).eval()
        >>> images = torch.randn(4, 3, 2, 2)
        >>> gradient_norms(model, images, "entropy").shape
        torch.Size([4])
        >>> labels = torch.tensor([0, 1, 2, 3])
        >>> loss = torch.nn.CrossEntropyLoss(reduction="none")
        >>> gradient_norms(model, images, lambda logits: loss(logits, labels)).shape
        torch.Size([4])
    """
    reduce = reduction(norm)
    call = Call.of(model, inputs, parameters, max_memory, dtype)
    norms = reduce(call.reduce(squares_for(norm), resolve_loss(loss)))
    # Exact and useless: ranked by position, it would look like a selection.
    if norms.shape[0] and float(norms.sum()) == 0:
        warn_user(
            f"The gradient norms of all {len(norms)} samples are exactly zero: the loss is flat at "
            "these outputs (ties, as the entropy of a uniform posterior has; a margin that every "
            "sample keeps; a saturated posterior), or a multiplication by zero cuts the model off. "
            "They rank nothing."
        )
    return norms
