"""Einstein sums of samples x and a weight w, computed as matrix products by the kernel of `linear`.

The place of each index decides its role:

    in x and w, not in the output: summed over, a column of the matrix
    in x, w and the output: one matrix for each of its values
    in x and the output: a position; in w and the output: a row of the matrix
    in x or w, and nowhere else: summed over before the product

Sums of more than two operands are taken two at a time (`pairwise`).
"""

from __future__ import annotations

import math
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from upslope.gradnorm.core.uses.tape import Tape
from upslope.gradnorm.kernels.expand import expand_to_samples
from upslope.gradnorm.kernels.linear import matmul


class _Roles(NamedTuple):
    """The indices of two operands by what they are for (see the top of the file), as letters."""

    positions: str
    matrices: str
    columns: str
    rows: str

    @classmethod
    def of(cls, x_term: str, w_term: str, out: str) -> _Roles:
        """Return the roles in a sum. x_term, w_term, out: the indices of x, w and the output."""
        in_output, in_both = set(out), set(x_term) & set(w_term)
        return cls(
            positions="".join(i for i in x_term if i in in_output - in_both),
            matrices="".join(i for i in x_term if i in in_output & in_both),
            columns="".join(i for i in x_term if i in in_both - in_output),
            rows="".join(i for i in w_term if i in in_output - in_both),
        )


def einsum(tape: Tape, equation: Any, *operands: Any, path: Any = None) -> Any:  # noqa: ARG001
    """`torch.einsum` of two tensors, one of them a weight."""
    tensors = operands[0] if len(operands) == 1 else operands
    if not isinstance(equation, str) or len(tensors) != 2:
        # torch calls again with letters in place of lists of indices; `pairwise` calls again
        # with two operands in place of more.
        return NotImplemented
    weight_first = tape.weights.is_weight(tensors[0])
    if weight_first and tape.weights.is_weight(tensors[1]):
        return NotImplemented
    terms, out, explicit = _explicit(equation, tensors, tape)
    order = (1, 0) if weight_first else (0, 1)
    (x, w), (x_term, w_term) = (explicit[i] for i in order), (terms[i] for i in order)
    roles = _Roles.of(x_term, w_term, out)
    sizes = _sizes(x_term, x) | _sizes(w_term, w)
    x = torch.einsum(f"{x_term}->{roles.positions + roles.matrices + roles.columns}", x)
    w = torch.einsum(f"{w_term}->{roles.matrices + roles.columns + roles.rows}", w)
    if roles.columns or roles.rows:
        product = _multiply_matrices(tape, x, w, roles, sizes)
        if product is NotImplemented:
            return NotImplemented
    else:
        product = x * expand_to_samples(tape, tape.weights.view(w), x.shape)
    order_now = roles.positions + roles.matrices + roles.rows
    result: Tensor = product.permute([order_now.index(i) for i in out])
    return result


def _multiply_matrices(
    tape: Tape, x: Tensor, w: Tensor, roles: _Roles, sizes: Mapping[str, int]
) -> Any:
    """Return the sum, (positions, matrices, rows), or NotImplemented where no kernel takes it.

    x: (positions, matrices, columns). w: (matrices, columns, rows). sizes: of the indices.
    """
    positions, matrices, columns, rows = ([sizes[i] for i in indices] for indices in roles)
    stack = [math.prod(matrices)] if matrices else []
    x = x.reshape(*positions, *stack, *([1] if matrices else []), math.prod(columns))
    w = w.reshape(*stack, math.prod(columns), math.prod(rows))
    product = matmul(tape, x, tape.weights.view(w))
    if product is NotImplemented:
        return NotImplemented
    return product.reshape([*positions, *matrices, *rows])  # of no dimension, perhaps


def pairwise(equation: Any, *operands: Any, path: Any = None) -> Any:  # noqa: ARG001
    """Compute `torch.einsum` of three tensors or more as sums of two, the smallest result first."""
    tensors = operands[0] if len(operands) == 1 else operands
    if not isinstance(equation, str) or len(tensors) < 3:
        return NotImplemented
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    letters, out = _named_indices(terms, out if arrow else None, tensors)
    # Samples before weights: a product of two weights is a weight of its own for each sample.
    order = sorted(range(len(tensors)), key=lambda i: isinstance(tensors[i], nn.Parameter))
    rest = [(letters[i], tensors[i]) for i in order]
    term, total = rest.pop(0)
    while rest:
        needed_indices = [set(out).union(*(t for k, (t, _) in enumerate(rest) if k != j))
                  for j in range(len(rest))]  # fmt: skip
        results = ["".join(i for i in dict.fromkeys(term + t) if i in needed_indices[j])
                   for j, (t, _) in enumerate(rest)]  # fmt: skip
        sizes = [_count(result, (term, total), rest[j]) for j, result in enumerate(results)]
        j = sizes.index(min(sizes))
        other, tensor = rest.pop(j)
        result = results[j] if rest else out
        total = torch.einsum(f"{term},{other}->{result}", total, tensor)
        term = result
    return total


def _count(result: str, *operands: tuple[str, Tensor]) -> int:
    """Return the number of entries of the result of a sum of two operands."""
    size: dict[str, int] = {}
    for term, tensor in operands:
        for i, n in zip(term, tensor.shape, strict=True):
            size[i] = max(size.get(i, 1), n)
    return math.prod(size[i] for i in result)


def _explicit(
    equation: str, tensors: Sequence[Tensor], tape: Tape
) -> tuple[list[str], str, list[Tensor]]:
    """Return the terms with one letter per dimension, the term of the output, and the tensors.

    Repeated letters of a term are replaced by the diagonal, and dimensions of size one that are
    broadcast against larger ones are squeezed.
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms, out = _named_indices(left.split(","), out if arrow else None, tensors)
    operands = list(tensors)
    largest = {i: max(_sizes(t, x)[i] for t, x in zip(terms, operands, strict=True) if i in t)
               for i in set("".join(terms))}  # fmt: skip
    for k, (term, tensor) in enumerate(zip(terms, operands, strict=True)):
        once = "".join(dict.fromkeys(term))
        x = torch.einsum(f"{term}->{once}", tensor) if once != term else tensor
        stretched_dims = [d for d, i in enumerate(once) if x.shape[d] < largest[i]]
        if stretched_dims:
            x = x.squeeze(stretched_dims)
            once = "".join(i for d, i in enumerate(once) if d not in stretched_dims)
        if tape.weights.is_weight(tensor):
            tape.weights.mark_derived(x)
        terms[k], operands[k] = once, x
    return terms, out, operands


def _sizes(term: str, tensor: Tensor) -> dict[str, int]:
    return dict(zip(term, tensor.shape, strict=True))


def _named_indices(
    terms: Sequence[str], out: str | None, tensors: Sequence[Tensor]
) -> tuple[list[str], str]:
    """Replace `...` by letters, and return the terms and that of the output, implicit or not."""
    letters = set("".join(terms))
    free = [i for i in string.ascii_letters if i not in letters]
    ranks = [
        x.dim() - len(t.replace("...", "")) if "..." in t else 0
        for t, x in zip(terms, tensors, strict=True)
    ]
    others = "".join(free[: max(ranks, default=0)])
    named_terms = [
        t.replace("...", others[len(others) - r :]) for t, r in zip(terms, ranks, strict=True)
    ]
    if out is None:
        every = "".join(terms).replace("...", "")
        out = others + "".join(sorted(i for i in set(every) if every.count(i) == 1))
    return named_terms, out.replace("...", others)
