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
"""Operators that put tensors side by side: each weight is expanded in its own shape."""

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

APPLYING = frozenset(
    ["linear", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm"]
    + [f"conv{'_transpose' if transposed else ''}{d}d" for d in (1, 2, 3) for transposed in (0, 1)]
    + [f"{kind}_cell" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
)
"""Operators that multiply what has rows or images by a weight."""

LOOKING_UP = frozenset(["__getitem__", "index_select"])
"""Operators that take rows of their first tensor by their last argument."""

EXPANDING = frozenset(["expand", "expand_as", "broadcast_to"])
"""Operators that only broadcast their first tensor."""

REPEATING = frozenset(["repeat", "tile"])
"""Operators that put a tensor beside itself."""


def is_entrywise(name: str) -> bool:
    """Whether an operator is one of those, or its form in place or for operands exchanged."""
    plain = name.strip("_")
    return plain in ENTRYWISE or (plain[:1] in "ri" and plain[1:] in ENTRYWISE)
