"""On which samples each number that an operator makes depends, tried out on the operator itself.

Operators that are known to keep samples apart (a convolution of images, a normalisation of each
token) say it by their names. Any other one is run again with NaN in the places of some samples,
once for each half that the binary digits of their numbers make: an entry that becomes NaN is made
of a sample of that half. One that becomes NaN in both halves is made of several samples.

Called by `statistics`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from upslope.gradnorm.proofs.owners import (
    NOBODY,
    compact,
    counting_dimensions,
    owners_together,
)

_OF_IMAGES = {
    **{f"conv{d}d": d + 2 for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": d + 2 for d in (1, 2, 3)},
    **{f"{kind}_pool{d}d": d + 2 for kind in ("max", "avg", "lp") for d in (1, 2, 3)},
    **{f"adaptive_{kind}_pool{d}d": d + 2 for kind in ("max", "avg") for d in (1, 2, 3)},
}
"""Operator -> the dimensions of its input, where it keeps the entries of dimension 0 apart."""

_OF_CHANNELS = frozenset({"batch_norm", "group_norm"})
"""Normalisations of images, that of batches with statistics of its own where it is in eval mode."""

_RECURRENT = frozenset({"gru", "lstm", "rnn_relu", "rnn_tanh"})
"""Recurrences over sequences: input (n, t, d), or (t, n, d), and states (layers, n, d)."""

_OF_LAST = frozenset({"layer_norm", "rms_norm"})
"""Operators that work on the last dimensions alone, those of their second argument."""

_PRODUCTS = frozenset({"matmul", "__matmul__", "bmm"})
"""Products of matrices: entries of the last dimension of the one and the last but one of the other
meet, and no others."""

_NO_VALUE = 2
"""What no binary digit is: nothing is spoilt."""

_ROUNDING = 1e3
"""Rounding errors that a kernel's order of sums may make, in steps of the type."""


def of_sequences(name: str, args: Any, owners: Sequence[Tensor], out: Any) -> list[Tensor] | None:
    """Return the owners of the outputs and states of a recurrence over whole sequences.

    name, args: the operator and what it got. owners: of the tensors that hold samples, the first
    argument's first. out: what it has made.
    """
    first = args[0] if args else None
    if name not in _RECURRENT or not isinstance(first, Tensor) or first.dim() != 3:
        return None
    batch = 0 if args[-1] is True else 1
    if len(owners) != 1 or not counting_dimensions(owners[0]) <= {batch}:
        return None
    return [owners[0] if i == 0 else owners[0].reshape(1, -1, 1) for i in range(len(out))]


def of_products(
    name: str,
    args: Any,
    kwargs: Any,
    operands: Sequence[Tensor],
    owners: Sequence[Tensor | None],
    out: Any,
) -> Tensor | None:
    """Return the owners of what products of matrices and attention make of single samples' entries.

    None where they are not known: entries of several samples may meet then.

    name, args, kwargs: the operator and what it got. operands: the tensors among it. owners: of
    these, None for such as hold no samples. out: what it has made.
    """
    if not isinstance(out, Tensor):
        return None
    pairs = [(x, owner) for x, owner in zip(operands, owners, strict=True) if owner is not None]
    if name == "scaled_dot_product_attention":
        # A query meets the keys and values of its own place in dimension 0 alone.
        apart = all(
            x.dim() == out.dim() and counting_dimensions(owner) <= {0} for x, owner in pairs
        )
        apart &= all(len(x) == len(out) for x, _ in pairs) and out.dim() > 2
    elif name in _PRODUCTS:
        is_plain = len(args) == len(operands) == 2 and not kwargs
        apart = is_plain and all(x.dim() > 1 for x in operands)
        for x, owner, dim in zip(operands, owners, (-1, -2), strict=False) if apart else ():
            apart &= owner is None or x.dim() + dim not in counting_dimensions(owner)
    else:
        return None
    return owners_together([owner for _, owner in pairs], out) if apart else None


def _is_in_eval_mode(args: Sequence[Any], kwargs: Any) -> bool:
    """Whether a batch normalisation takes the statistics that it is given."""
    training = kwargs.get("training", args[5] if len(args) > 5 else False)
    return training is False


class Dependence(NamedTuple):
    """mixes: whether some entry depends on several samples. owners: whose each is, if none does."""

    mixes: bool
    owners: Tensor | None


class _Call(NamedTuple):
    """An operator that takes the numbers of samples in its first tensor alone, and what it made."""

    name: str
    args: Sequence[Any]
    kwargs: Any
    first: Tensor
    owners: Tensor
    """Of the first tensor."""
    out: Tensor

    @property
    def counting(self) -> set[int]:
        """The dimensions of the first tensor along which owners differ."""
        return counting_dimensions(self.owners)

    def is_of_samples_in_front(self) -> bool:
        """Whether the samples are in dimension 0, and the output is as long there."""
        return self.counting <= {0} and len(self.out) == len(self.first)

    def owners_unless_in(self, count: int) -> Tensor | None:
        """Return the owners; None where they differ along one of the last `count` dimensions."""
        dims = self.first.dim()
        return None if self.counting & {*range(dims - count, dims)} else self.owners


def _of_images(call: _Call) -> Tensor | None:
    """Return the owners of what comes of whole images: one of each."""
    if _OF_IMAGES[call.name] != call.first.dim() or not call.is_of_samples_in_front():
        return None
    return call.owners.view(-1, *(1,) * (call.out.dim() - 1))


def _of_resized(call: _Call) -> Tensor | None:
    """Return the owners of images of another size."""
    has_images = call.out.dim() == call.first.dim() > 2
    return call.owners if has_images and call.is_of_samples_in_front() else None


def _of_vectors(call: _Call) -> Tensor | None:
    """Return the owners of a product of each vector, of one sample, with a matrix."""
    return call.owners if call.owners.shape[-1:] == (1,) else None


def _of_channels(call: _Call) -> Tensor | None:
    """Return the owners of images that are normalised, each by itself."""
    if not call.counting <= {0} or call.out.shape != call.first.shape:
        return None
    is_apart = call.name != "batch_norm" or _is_in_eval_mode(call.args, call.kwargs)
    return call.owners if is_apart else None


def _of_last_dimensions(call: _Call) -> Tensor | None:
    """Return the owners of what is normalised over its last dimensions."""
    if call.out.shape != call.first.shape or len(call.args) < 2:
        return None
    return call.owners_unless_in(len(tuple(call.args[1])))


def _of_padded(call: _Call) -> Tensor | None:
    """Return the owners of what is padded at both ends of its last dimensions."""
    if len(call.args) < 2 or call.out.dim() != call.first.dim():
        return None
    return call.owners_unless_in(len(tuple(call.args[1])) // 2)


def _of_rows_looked_up(call: _Call) -> Tensor | None:
    """Return the owners of rows of a table, each looked up by one whole number."""
    is_by_number = not call.first.is_floating_point() and call.first.dim() + 1 == call.out.dim()
    return call.owners[..., None] if is_by_number else None


_KEEPING_APART: Mapping[str, Callable[[_Call], Tensor | None]] = {
    **dict.fromkeys(_OF_IMAGES, _of_images),
    **dict.fromkeys(_OF_CHANNELS, _of_channels),
    **dict.fromkeys(_OF_LAST, _of_last_dimensions),
    "interpolate": _of_resized,
    "linear": _of_vectors,
    "pad": _of_padded,
    "embedding": _of_rows_looked_up,
}
"""Operator that keeps samples apart -> what returns the owners of its output; None where the call
is one that may mix them."""


def keeps_apart(
    name: str, args: Sequence[Any], kwargs: Any, owners: Sequence[Tensor], out: Any
) -> Tensor | None:
    """Return the owners of what an operator makes, where its name says that it keeps samples apart.

    name, args, kwargs: the operator and what it got. owners: of the tensors that hold samples, the
    first argument's first. out: what it has made.
    """
    first, rule = args[0] if args else None, _KEEPING_APART.get(name)
    if rule is None or len(owners) != 1:
        return None
    if not (isinstance(first, Tensor) and isinstance(out, Tensor)):
        return None
    return rule(_Call(name, args, kwargs, first, owners[0], out))


def try_dependence(
    func: Callable[..., Any],
    args: Any,
    kwargs: Any,
    inputs: Sequence[tuple[Tensor, Tensor]],
    out: Any,
) -> list[Dependence] | None:
    """Return, of each tensor that an operator has made, on whose entries it depends.

    None where that cannot be tried: it takes none of the numbers that are put in the places of
    samples, or makes as many as these say.

    func, args, kwargs: the operator and what it got. inputs: every tensor that holds samples, and
    its owners. out: what was made.
    """
    owners_of_input = {id(x): owners for x, owners in inputs if _is_floating(x)}
    spoils: tuple[Callable[[Tensor], Tensor], ...] = (_to_nan, _to_others)
    if not owners_of_input:
        owners_of_input, spoils = {id(x): owners for x, owners in inputs}, (_to_other_places,)
    results = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
    if not owners_of_input or not results:
        return None
    has_floats = any(map(_is_floating, results))
    # Decompositions take no NaN: other numbers tell then, which most entries feel.
    depends: list[Dependence] | None = None
    is_written = _are_in_memory_of(results, tree_flatten((args, kwargs))[0])
    for spoil in spoils:

        def run(digit: int, value: int, spoil: Callable[[Tensor], Tensor] = spoil) -> list[Tensor]:
            def take(tensor: Tensor) -> Tensor:
                if isinstance(tensor, nn.Parameter):
                    return tensor
                owners = owners_of_input.get(id(tensor))
                if owners is None:  # a copy: a layer writes into its statistics
                    return tensor.detach().clone()
                spoilt = ((owners >> digit) & 1 == value) & (owners != NOBODY)
                return torch.where(spoilt, spoil(tensor.detach()), tensor.detach())

            arguments = tree_map_only(Tensor, take, (args, kwargs))
            with torch.no_grad(), torch.random.fork_rng(devices=()):
                numbers = func(*arguments[0], **arguments[1])
            return [x for x in tree_flatten(numbers)[0] if isinstance(x, Tensor)]

        try:
            # Whole numbers may be drawn, and drawn again the same in each run.
            numbers = run(0, _NO_VALUE) if is_written or not has_floats else results
            depends = _compare_runs(
                run, numbers, max(int(owners.max()) for owners in owners_of_input.values())
            )
        except Exception:  # it does not take such numbers
            continue
        if depends is None:
            return None
        # Some kernels leave NaN in memory that the next sample's numbers are added to. What was
        # written over may feel no NaN: a norm that was brought to its maximum. A comparison is no
        # sum, and may feel other numbers in one of its sides alone.
        if depends[0].mixes == (is_written if has_floats else True):
            return depends
    return depends


def _are_in_memory_of(results: Sequence[Tensor], arguments: Sequence[Any]) -> bool:
    """Whether an operator may have written its results into what it took (`inplace=True`).

    To run it again then starts from those.
    """
    places = {x.untyped_storage().data_ptr() for x in arguments if isinstance(x, Tensor)}
    return any(x.untyped_storage().data_ptr() in places for x in results)


def _compare_runs(
    run: Callable[[int, int], list[Tensor]], results: list[Tensor], largest: int
) -> list[Dependence] | None:
    """The dependence of each tensor, by all runs with some samples' numbers spoilt.

    run: the operator with the samples spoilt that have a value at a binary digit. results: what it
    makes of all as they are. largest: the largest number of a sample.
    """
    several = [torch.zeros(x.shape, dtype=torch.bool, device=x.device) for x in results]
    whose = [torch.zeros(x.shape, dtype=torch.long, device=x.device) for x in results]
    is_reached = [torch.zeros_like(x) for x in several]
    for digit in range(max(1, largest.bit_length())):
        halves = []
        for value in (0, 1):
            numbers = run(digit, value)
            if [x.shape for x in numbers] != [x.shape for x in results]:
                return None
            halves.append([_differ(a, b) for a, b in zip(numbers, results, strict=True)])
        for i, (zero, one) in enumerate(zip(*halves, strict=True)):
            several[i] |= zero & one
            is_reached[i] |= zero | one
            whose[i] |= one.long() << digit
    if any(bool(has_mixed.any()) for has_mixed in several):
        return [Dependence(True, None)] * len(results)
    # Whole numbers may not move, though they depend on a sample.
    return [
        Dependence(False, compact(torch.where(reach, owner, NOBODY)) if _is_floating(x) else None)
        for x, reach, owner in zip(results, is_reached, whose, strict=True)
    ]


def _is_floating(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _to_nan(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, torch.nan)


def _to_others(tensor: Tensor) -> Tensor:
    # Curved, for a correlation is the same of all that a straight line makes of it; and by sums of
    # products, which take a positive definite matrix to another.
    return tensor * tensor * 0.4 + tensor * 1.7 + 0.9


def _to_other_places(tensor: Tensor) -> Tensor:
    """Return whole numbers from other places of a tensor, which are as good as its own."""
    if tensor.dtype == torch.bool:
        return ~tensor
    return tensor.flatten().flip(0).view_as(tensor)


def _differ(a: Tensor, b: Tensor) -> Tensor:
    """Where two tensors of one shape differ by more than rounding; NaN is the same as NaN."""
    if not _is_floating(a):
        return a != b
    size = torch.where(torch.isfinite(b), b.abs(), 0).max() if b.numel() else 0
    same = (a == b) | ((a - b).abs() <= _ROUNDING * torch.finfo(a.dtype).eps * size)
    return ~(same | (a.isnan() & b.isnan()))
