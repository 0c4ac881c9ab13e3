"""Kinds of torch's operators, by what they do to the entries of tensors."""

from __future__ import annotations

import torch
from torch import Tensor

ENTRYWISE = frozenset(
    {
        "add", "sub", "rsub", "mul", "div", "true_divide", "pow", "maximum", "minimum", "where",
        "lerp", "addcmul", "addcdiv", "float_power", "atan2", "hypot", "fmod", "remainder",
        "logaddexp", "copysign", "xlogy", "clamp", "clip", "masked_fill", "cosine_similarity",
        "pairwise_distance", "linalg_cross",
    }
)  # fmt: skip
"""Operators whose output has the broadcast shape of their inputs, entry by entry."""

JOINING = frozenset(["cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"])
"""Operators that put tensors side by side: each weight is lifted in its own shape."""

LIKE_ANOTHER = frozenset(["to", "type_as", "expand_as", "view_as", "reshape_as", "broadcast_to"])
"""Operators that take the kind of their first tensor; the others only lend a shape or a type."""

CHOOSING = frozenset(
    {Tensor.__getitem__, torch.index_select, Tensor.index_select, torch.masked_select,
     Tensor.masked_select, torch.take, Tensor.take}
)  # fmt: skip

ASKING = frozenset(
    {Tensor.dim, Tensor.size, Tensor.numel, Tensor.__len__, Tensor.is_floating_point}
    | {getattr(Tensor, name).__get__
       for name in ("shape", "dtype", "device", "ndim", "is_cuda", "requires_grad", "layout")}
)  # fmt: skip
"""What tells of a tensor and computes nothing."""

EXPANDING = frozenset(["expand", "expand_as", "broadcast_to"])
"""Operators that only broadcast their first tensor."""

REPEATING = frozenset(["repeat", "tile"])
"""Operators that put a tensor beside itself."""


def is_entrywise(name: str) -> bool:
    """Whether an operator is one of those, or its form in place or for operands exchanged."""
    plain = name.strip("_")
    return plain in ENTRYWISE or (plain[:1] in "ri" and plain[1:] in ENTRYWISE)
