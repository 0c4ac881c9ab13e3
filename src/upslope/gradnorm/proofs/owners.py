"""Which sample each entry of a tensor belongs to, followed from operator to operator.

Sizes do not tell which dimension of a tensor counts the samples where others are as long by chance:
(10,) may be one row of ten classes, or ten samples. So beside a tensor goes another one of whole
numbers, its *owners*: of the same number of dimensions, and of size 1 along those that hold one
sample's entries. Operators that move entries are run on the owners of all entries; operators that
work entry by entry put owners together. Of any other operator nothing is known (None), unless all
that it gets belongs to one sample.

Called by `statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

NOBODY = -1
"""The owner of entries that are made of no sample: constants, labels."""

_PLACING = frozenset(
    {
        "__get__", "__getitem__", "adjoint", "chunk", "diagonal", "expand", "expand_as", "flatten",
        "flip", "fliplr", "flipud", "gather", "index_select", "masked_select", "moveaxis",
        "movedim", "narrow", "permute", "repeat", "repeat_interleave", "reshape", "reshape_as",
        "roll", "rot90", "select", "split", "squeeze", "swapaxes", "swapdims", "t",
        "take_along_dim", "tensor_split", "tile", "transpose", "unbind", "unflatten", "unfold",
        "unsqueeze", "view", "view_as", "broadcast_to", "atleast_1d", "atleast_2d",
    }
)  # fmt: skip
"""Operators that put the entries of their first argument into other places."""

_JOINING = frozenset(
    {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack"}
)
"""Operators that put the entries of several tensors into one."""

_ELEMENTWISE = frozenset(
    {
        "__add__", "__and__", "__eq__", "__floordiv__", "__ge__", "__gt__", "__iadd__",
        "__iand__", "__ifloordiv__", "__imod__", "__imul__", "__invert__", "__ior__",
        "__ipow__", "__isub__", "__itruediv__", "__ixor__", "__le__", "__lshift__",
        "__lt__", "__mod__", "__mul__", "__ne__", "__neg__", "__or__", "__pow__",
        "__radd__", "__rand__", "__rdiv__", "__rfloordiv__", "__rmod__", "__rmul__",
        "__ror__", "__rpow__", "__rshift__", "__rsub__", "__rtruediv__", "__rxor__",
        "__sub__", "__truediv__", "__xor__", "abs", "absolute", "add", "addcdiv", "addcmul",
        "alpha_dropout", "arctan2", "atan2", "bitwise_and", "bitwise_left_shift",
        "bitwise_not", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "bool", "clamp",
        "clamp_max", "clamp_min", "clip", "clone", "contiguous", "copysign", "cos",
        "detach", "div", "divide", "double", "dropout", "dropout1d", "dropout2d",
        "dropout3d", "elu", "eq", "erf", "exp", "expm1", "float", "float_power",
        "floor_divide", "fmax", "fmin", "fmod", "gcd", "ge", "gelu", "greater",
        "greater_equal", "gt", "half", "hardtanh", "heaviside", "huber_loss", "hypot",
        "int", "isclose", "isfinite", "isinf", "isnan", "lcm", "ldexp", "le", "leaky_relu",
        "lerp", "less", "less_equal", "log", "log10", "log1p", "log2", "logaddexp",
        "logaddexp2", "logical_and", "logical_not", "logical_or", "logical_xor",
        "logsigmoid", "long", "lt", "masked_fill", "maximum", "minimum", "mul", "multiply",
        "nan_to_num", "ne", "neg", "negative", "nextafter", "not_equal", "pow",
        "reciprocal", "relu", "relu6", "remainder", "requires_grad_", "round", "rsqrt",
        "rsub", "selu", "sgn", "sigmoid", "sign", "silu", "sin", "softplus", "special_entr",
        "special_expit", "special_xlog1py", "special_xlogy", "sqrt", "square", "sub",
        "subtract", "tanh", "to", "true_divide", "type", "type_as", "where", "xlogy",
    }
)  # fmt: skip
"""Operators each of whose entries is made of the entries in its own place."""


_COMPACT = "_upslope_is_compact"
"""The attribute of owners that `compact` has returned."""


def front_owners(n: int, tensor: Tensor) -> Tensor:
    """Return the owners of a tensor (n, ...) with one sample in each row, (n, 1, ..., 1)."""
    return torch.arange(n, device=tensor.device).view(n, *(1,) * (tensor.dim() - 1))


SEARCHING = {"isin": (1, "test_elements"), "searchsorted": (0, "sorted_sequence"),
             "bucketize": (1, "boundaries")}  # fmt: skip
"""Operators that look numbers up in a table -> the place of that among their arguments, and its
name. A trial with other numbers need not change what they find."""


def owners_of_output(
    name: str,
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    inputs: Sequence[tuple[Tensor, Tensor]],
    out: Tensor,
    place: int | None,
) -> Tensor | None:
    """Return the owners of what an operator has made; None where they are not known.

    name, func, args, kwargs: the operator and what it got. inputs: every tensor that holds samples,
    and its owners. out: what was made, or the tensor at `place` of it where several were.
    """
    if name == "__setitem__":
        owners_of_input = {id(tensor): owners for tensor, owners in inputs}
        target, index, value = args
        whole = _spread(owners_of_input.get(id(target)), target).clone()
        whole[index] = (
            _spread(owners_of_input.get(id(value)), value) if isinstance(value, Tensor) else NOBODY
        )
        return _shortest(whole)
    single = {int(i) for _, owners in inputs for i in set(owners.flatten().tolist())} - {NOBODY}
    if len(single) == 1:
        return torch.tensor(single.pop(), device=out.device).view((1,) * out.dim())
    try:
        if name in _PLACING and inputs[0][0] is args[0]:
            spread_output: Any = func(_spread(inputs[0][1], args[0]), *args[1:], **kwargs)
        elif name in _JOINING:
            owners_of_input = {id(tensor): owners for tensor, owners in inputs}
            rows = [_spread(owners_of_input.get(id(x)), x) for x in args[0]]
            spread_output = func(rows, *args[1:], **kwargs)
        elif name in {"gather", "take_along_dim"} and inputs[0][0].shape == out.shape:
            return inputs[0][1]  # of a table of constants: the index is the only one with samples
        elif is_entrywise(name):
            return owners_together([owners for _, owners in inputs], out)
        elif name in SEARCHING:
            return owners_of_search(name, args, kwargs, inputs, out)
        elif name == "linear" and len(inputs) == 1 and inputs[0][1].shape[-1] == 1:
            return inputs[0][1]
        else:
            return None
    except (RuntimeError, TypeError, IndexError, ValueError):  # it takes no whole numbers
        return None
    part: Tensor = spread_output if place is None else spread_output[place]
    return _shortest(part) if part.shape == out.shape else None


def _spread(owners: Tensor | None, tensor: Tensor) -> Tensor:
    """The owner of each entry, of the shape of the tensor."""
    if owners is None:
        return torch.full((), NOBODY, device=tensor.device).expand(tensor.shape)
    return owners.expand(tensor.shape)


def compact(owners: Tensor, *, absorb: bool = True) -> Tensor:
    """Keep one entry of every dimension along which no two samples have entries.

    absorb: whether entries of nobody may count as those of the sample beside them.
    """
    if hasattr(owners, _COMPACT):
        return owners
    for dim, size in enumerate(owners.shape):
        if size > 1:
            if owners.stride(dim) == 0:
                owners = owners.narrow(dim, 0, 1)
                continue
            top = owners.amax(dim, keepdim=True)
            same = owners == top
            if bool((same | (owners == NOBODY) if absorb else same).all()):
                owners = top
    owners = owners.contiguous()
    if absorb:  # nothing is left to do: asked again of each tensor that an operator takes
        setattr(owners, _COMPACT, True)
    return owners


def _shortest(owners: Tensor) -> Tensor:
    """Keep one entry of every dimension along which all have the same owner, or none.

    A class token beside patches belongs to nobody, whoever the patches belong to: a model may move
    it to another sample.
    """
    return compact(owners, absorb=False)


def owners_together(owners: Sequence[Tensor], out: Tensor) -> Tensor | None:
    """Return the owners of what is made entry by entry; None where two samples meet in an entry.

    owners: of what it is made of, broadcast to each other. out: what is made.
    """
    if do_meet(owners):
        return None
    whole = owners[0]
    for other in owners[1:]:
        whole = torch.maximum(whole, other)
    whole = whole.view((1,) * (out.dim() - whole.dim()) + tuple(whole.shape))
    return _shortest(whole)


def owners_of_search(
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    inputs: Sequence[tuple[Tensor, Tensor]],
    out: Tensor,
) -> Tensor | None:
    """Return the owners of what is looked up in a table; None where two samples meet in an entry.

    Each number is held against all of the table, or, in a table of several rows, against its own.
    Arguments as of `owners_of_output`.
    """
    place, word = SEARCHING[name]
    table: Any = args[place] if len(args) > place else kwargs[word]
    has_rows = name == "searchsorted" and table.dim() > 1
    owners = []
    for tensor, of_tensor in inputs:
        if tensor is table or tensor is kwargs.get("sorter"):
            counting = counting_dimensions(of_tensor)
            if counting and not (has_rows and of_tensor.dim() - 1 not in counting):
                return None
            of_tensor = of_tensor if has_rows else of_tensor.reshape(())
        owners.append(of_tensor)
    return owners_together(owners, out)


def do_meet(owners: Sequence[Tensor]) -> bool:
    """Whether entries of different samples are in one place of tensors broadcast together."""
    first = owners[0]
    for other in owners[1:]:
        if bool(((first != other) & (first != NOBODY) & (other != NOBODY)).any()):
            return True
        first = torch.maximum(first, other)
    return False


def is_entrywise(name: str) -> bool:
    """Whether each entry that an operator makes is made of the entries in its own place."""
    in_place = name.endswith("_") and not name.endswith("__")
    return (name[:-1] if in_place else name) in _ELEMENTWISE


def is_understood(name: str) -> bool:
    """Whether `owners_of_output` knows an operator by its name."""
    return name in _PLACING or name in _JOINING or name in SEARCHING or is_entrywise(name)


def counting_dimensions(owners: Tensor) -> set[int]:
    """Return the dimensions along which a tensor's entries belong to different samples."""
    return {dim for dim, size in enumerate(owners.shape) if size > 1}


def reduced_owners(owners: Tensor, dims: set[int] | None, out: Tensor) -> Tensor | None:
    """Return the owners of a reduction over dimensions that hold one sample's entries each.

    owners: of what is reduced. dims: those that are reduced; None for all. out: the result.
    """
    if out.dim() == owners.dim():
        return owners
    over = sorted(range(owners.dim()) if dims is None else dims)
    if out.dim() != owners.dim() - len(over):
        return None
    return owners.squeeze(tuple(over)) if over else owners


def entries_of_one(tensor: Tensor, owners: Tensor, dims: set[int] | None, one: int) -> Tensor:
    """Return a tensor with one sample's entries in the places of all that are reduced with them.

    tensor, owners: of the same dimensions. one: the sample. dims: the dimensions that are reduced;
    None for all. Where several dimensions tell samples apart, or the sample has none of the
    entries, the tensor stays what it is.
    """
    counting = counting_dimensions(owners)
    if len(counting) != 1 or not (dims is None or counting & dims):
        return tensor
    (dim,) = counting
    along = owners.flatten()
    entries = (along == one).nonzero().flatten()
    if len(entries) == 0:
        return tensor
    places = torch.arange(len(along), device=along.device)
    for sample in set(along.tolist()):
        at = (along == sample).nonzero().flatten()
        if sample != NOBODY:
            places[at] = entries[torch.arange(len(at), device=at.device) % len(entries)]
    return tensor.index_select(dim, places)
