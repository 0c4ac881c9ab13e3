"""Gradients of many samples on their way back through a weight's graph, as products g F.

What a weight is made of is often larger than the weight: a kernel of a state space is a sum of
exponentials, k[d, l] = sum_n C[d, n] exp(a[d, n] l). Autograd would form the gradient of every
exponential for each sample. But most operators on the way work entry by entry, and all samples
share their derivatives: the gradient of sample s stays g_s F, where g_s has a dimension less and F
no samples. Only where a factor was broadcast are products summed, as products of matrices:

    sum over n      g stays, with a dimension of size 1
    exp, sigmoid    F is multiplied by the derivative, once for all samples
    u v             F v for u, and F u for v; summed over the dimensions along which u was broadcast

Called by `derived_gradients`, node by node of autograd's graph. Of complex numbers the derivative
is conjugated, as autograd has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge


class FactoredGradient(NamedTuple):
    """Gradients g F of a tensor, for m samples.

    g: (m, ...), of the tensor's rank, of size 1 where all entries along a dimension have the same.
    factor: F, of the tensor's shape; None for ones.
    """

    g: Tensor
    factor: Tensor | None = None

    def dense(self, shape: Sequence[int]) -> Tensor:
        """Return the gradients themselves, (m, *shape). shape: the tensor's."""
        if self.factor is not None:
            return self.g * self.factor
        return self.g.expand(len(self.g), *shape)

    def times(self, factor: Tensor, shape: Sequence[int]) -> FactoredGradient:
        """Return the gradients times numbers that broadcast to the tensor's shape."""
        return FactoredGradient(
            self.g, factor.expand(shape) if self.factor is None else self.factor * factor
        )

    def sum_to(self, shape: Sequence[int], source: Sequence[int]) -> FactoredGradient:
        """Return the gradients of a tensor that was broadcast. source: the shape that it got."""
        ahead = len(source) - len(shape)
        full = (*(1,) * ahead, *shape)
        dims = [d for d, size in enumerate(full) if size == 1 and source[d] > 1]
        if not dims and ahead == 0:
            return self
        if self.factor is None:
            repeats = math.prod(source[d] for d in dims if self.g.shape[1 + d] == 1)
            dims_of_g = [1 + d for d in dims if self.g.shape[1 + d] > 1]
            g = self.g.sum(dim=dims_of_g, keepdim=True) if dims_of_g else self.g
            g = g * repeats if repeats > 1 else g
            return FactoredGradient(g.reshape(len(g), *g.shape[1 + ahead :]))
        # Letters 1, 2, ... are the tensor's dimensions, 0 the samples.
        places = [d for d in range(len(source)) if self.g.shape[1 + d] > 1]
        g = self.g.reshape(len(self.g), *(self.g.shape[1 + d] for d in places))
        rest = [d for d in range(len(source)) if d not in dims]
        every, of_g = [1 + d for d in range(len(source))], [0, *(1 + d for d in places)]
        sums = torch.einsum(g, of_g, self.factor.to(g.dtype), every, [0, *(1 + d for d in rest)])
        return FactoredGradient(sums.reshape(len(g), *shape))


OfParents = Sequence[FactoredGradient | None]
"""Of each input of a node of autograd's graph; None of a constant."""


@torch.no_grad()
def pull_back(node: Any, output: int, gradients: FactoredGradient) -> OfParents | None:
    """Return the gradients of a node's inputs; None where no rule here covers the node.

    gradients: those of the node's output.
    """
    name = type(node).__name__
    rule = _RULES.get(name)
    if rule is None and name not in _OF_ENTRIES:
        return None
    metadata = node._input_metadata[output]
    if metadata.dtype.is_complex and name not in _HOLOMORPHIC:
        return None
    of_parents = (rule or _entries)(node, gradients, tuple(metadata.shape))
    if of_parents is None:
        return None
    return [
        _in_type_of(of_parent, metadata.dtype, *parent)
        for of_parent, parent in zip(of_parents, node.next_functions, strict=True)
    ]


def pull_back_entries(node: Any, output: int, gradients: FactoredGradient) -> OfParents | None:
    """Return what `pull_back` does for nodes that work entry by entry; None of all others.

    Arguments as of `pull_back`. An input may be smaller than the output, and have been broadcast.
    """
    if type(node).__name__ not in _OF_ENTRIES | _OF_PAIRS:
        return None
    return pull_back(node, output, gradients)


def shape_of(node: Any, output: int) -> tuple[int, ...]:
    """Return the shape of an output of a node, which is an input of the next one."""
    return tuple(node._input_metadata[output].shape)


def _in_type_of(
    gradients: FactoredGradient | None, kind: torch.dtype, parent: Any, place: int
) -> FactoredGradient | None:
    """Return the gradients of an input that an operator has taken in another type than its own.

    kind: the output's type. Of what became complex numbers the real part counts.
    """
    if gradients is None or parent._input_metadata[place].dtype == kind:
        return gradients
    dense = gradients.dense(shape_of(parent, place))
    target = parent._input_metadata[place].dtype
    return FactoredGradient(
        (dense.real if dense.is_complex() and not target.is_complex else dense).to(target)
    )


def _number(node: Any, tensor: Tensor) -> Tensor:
    """Return an operand of a node, in the type in which the node has computed."""
    return tensor.detach().to(node._input_metadata[0].dtype)


def _entries(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents:
    """Return those of an operator that works entry by entry on one tensor."""
    of_input = _derivative(node, _factor_of(node, gradients, shape))
    return [FactoredGradient(gradients.g, of_input), *[None] * (len(node.next_functions) - 1)]


def _derivative(node: Any, factor: Tensor) -> Tensor:
    """Return what a node with one input makes of numbers of its output's shape."""
    of_input: Tensor | None = node(factor)
    if of_input is None:  # within a backward pass a node computes what that one asks for alone
        ends = [GradientEdge(node, 0)], [GradientEdge(*node.next_functions[0])]
        (of_input,) = torch.autograd.grad(*ends, [factor], retain_graph=True)
    return of_input


def _factor_of(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> Tensor:
    """Return F, of the shape and type of a node's output."""
    if gradients.factor is not None:
        return gradients.factor
    kind = node._input_metadata[0].dtype
    return torch.ones((), dtype=kind, device=gradients.g.device).expand(shape)


def _reduction(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents | None:
    """Return those of sums, means and norms along dimensions, or along all."""
    parent, place = node.next_functions[0]
    source = shape_of(parent, place)
    name = type(node).__name__
    of_input: Tensor | None = None
    if name == "LinalgVectorNormBackward0" and node._saved_ord != 2:
        return None
    if name == "LinalgVectorNormBackward0" or gradients.factor is not None:
        # With numbers of the output's shape: what each entry of the input has of them.
        of_input = _derivative(node, _factor_of(node, gradients, shape))
    g = gradients.g
    if len(shape) != len(source):
        saved_dims = getattr(node, "_saved_dim", None)
        dims = (
            range(len(source))
            if not saved_dims
            else [with_sign(d) % len(source) for d in saved_dims]
        )
        for dim in sorted(dims):
            g = g.unsqueeze(1 + dim)
    if of_input is None and name.startswith("Mean"):
        g = g * (math.prod(shape) / max(1, math.prod(source)))
    return [FactoredGradient(g, of_input)]


def _broadcast(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents:
    return [gradients.sum_to(shape_of(*node.next_functions[0]), shape)]


def _sum(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents:
    """Return those of u + alpha v and u - alpha v."""
    sign = -1 if type(node).__name__ == "SubBackward0" else 1
    scales = (1, sign * node._saved_alpha)
    return [
        None
        if parent is None
        else (gradients if scale == 1 else gradients._replace(g=gradients.g * scale)).sum_to(
            shape_of(parent, place), shape
        )
        for (parent, place), scale in zip(node.next_functions, scales, strict=True)
    ]


def _product(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents:
    (u, u_place), (v, v_place) = node.next_functions
    of_u = of_v = None
    if u is not None:
        other = _number(node, node._saved_other).conj()
        of_u = gradients.times(other, shape).sum_to(shape_of(u, u_place), shape)
    if v is not None:
        other = _number(node, node._saved_self).conj()
        of_v = gradients.times(other, shape).sum_to(shape_of(v, v_place), shape)
    return [of_u, of_v]


def _quotient(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents:
    (u, u_place), (v, v_place) = node.next_functions
    divisor = _number(node, node._saved_other)
    of_u = of_v = None
    if u is not None:
        of_u = gradients.times(divisor.reciprocal().conj(), shape)
        of_u = of_u.sum_to(shape_of(u, u_place), shape)
    if v is not None:
        slope = -_number(node, node._saved_self) / divisor.square()
        of_v = gradients.times(slope.conj(), shape).sum_to(shape_of(v, v_place), shape)
    return [of_u, of_v]


def _matrix_product(
    node: Any, gradients: FactoredGradient, shape: tuple[int, ...]
) -> OfParents | None:
    """Return those of products of matrices, or of stacks of them: (..., i, k) (..., k, j)."""
    (a, _), (b, _) = node.next_functions
    factors = [node._saved_mat2 if a is not None else None]
    factors.append(node._saved_self if b is not None else None)
    if any(factor is not None and factor.layout != torch.strided for factor in factors):
        return None
    of_a = of_b = None
    g = None if min(shape[-2:]) == 1 and gradients.factor is None else gradients.dense(shape)
    if a is not None:
        right = node._saved_mat2.detach().conj().mT  # (..., j, k)
        if shape[-1] == 1 and g is None:  # of one column, each entry of A has one product
            of_a = FactoredGradient(gradients.g, right.expand(*shape[:-1], right.shape[-1]))
        else:
            of_a = FactoredGradient(torch.matmul(gradients.dense(shape) if g is None else g, right))
    if b is not None:
        left = node._saved_self.detach().conj().mT  # (..., k, i)
        if shape[-2] == 1 and g is None:
            of_b = FactoredGradient(gradients.g, left.expand(*left.shape[:-1], shape[-1]))
        else:
            of_b = FactoredGradient(torch.matmul(left, gradients.dense(shape) if g is None else g))
    return [of_a, of_b]


def _reshape(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents:
    """Return those of a tensor that had the same entries in the same order."""
    source = shape_of(*node.next_functions[0])
    g, factor = gradients
    if [size for size in shape if size > 1] != [size for size in source if size > 1]:
        return [FactoredGradient(gradients.dense(shape).reshape(len(g), *source))]
    sizes = iter([g.shape[1 + d] for d, size in enumerate(shape) if size > 1])
    places = [next(sizes) if size > 1 else 1 for size in source]
    return [
        FactoredGradient(
            g.reshape(len(g), *places), None if factor is None else factor.reshape(source)
        )
    ]


def _permute(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents:
    """Return those of a tensor whose dimensions were permuted."""
    dims = [*range(len(shape))]
    if type(node).__name__ == "PermuteBackward0":
        dims = [with_sign(dim) % len(shape) for dim in node._saved_dims]
    elif type(node).__name__ == "TransposeBackward0":
        a, b = (with_sign(dim) % len(shape) for dim in (node._saved_dim0, node._saved_dim1))
        dims[a], dims[b] = b, a
    else:
        dims.reverse()
    back = sorted(dims, key=dims.__getitem__)
    g, factor = gradients
    g = g.permute(0, *(1 + dim for dim in back))
    return [FactoredGradient(g, None if factor is None else factor.permute(back))]


def _component(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents | None:
    """Return those of the real or the imaginary part, as they are read off complex numbers."""
    parent, place = node.next_functions[0]
    if type(parent).__name__ != "ViewAsRealBackward0":
        return None
    g = gradients.dense(shape)
    whole = g.new_zeros(len(g), *shape_of(parent, place))
    whole.select(1 + with_sign(node._saved_dim) % (len(shape) + 1), node._saved_index).copy_(g)
    return [FactoredGradient(whole)]


def _as_complex(_: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents:
    return [FactoredGradient(torch.view_as_complex(gradients.dense(shape).contiguous()))]


def _as_real(_: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents:
    return [FactoredGradient(torch.view_as_real(gradients.dense(shape).resolve_conj()))]


def _spectrum(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents | None:
    """Return those of a Fourier transform, of complex numbers or to one half of a real one's."""
    g = gradients.dense(shape)
    dims = [1 + with_sign(dim) % len(shape) for dim in node._saved_dim]
    is_forward = True
    if type(node).__name__ == "FftC2CBackward0":
        is_forward = node._saved_forward
    elif node._saved_onesided:  # the other half is made of this one, and has no gradient
        half, g = g, g.new_zeros(len(g), *shape_of(*node.next_functions[0]))
        g.narrow(dims[-1], 0, half.shape[dims[-1]]).copy_(half)
    out = torch._fft_c2c(g, dims, node._saved_normalization, not is_forward)
    return [FactoredGradient(out)]


def _border(node: Any, gradients: FactoredGradient, shape: tuple[int, ...]) -> OfParents | None:
    """Return those of a tensor that was given a border."""
    g, sides = gradients.dense(shape), [with_sign(side) for side in node._saved_pad]
    if min(sides, default=0) < 0:
        return None
    for k, (before, after) in enumerate(zip(sides[::2], sides[1::2], strict=True)):
        dim = g.dim() - 1 - k
        g = g.narrow(dim, before, g.shape[dim] - before - after)
    return [FactoredGradient(g)]


def with_sign(number: int) -> int:
    """Return a number that autograd's graph may show as an unsigned one."""
    return number - 2**64 if number >= 2**63 else number


_OF_ENTRIES = frozenset(
    {"AbsBackward0", "ClampBackward1", "ClampMaxBackward0", "ClampMinBackward0", "CosBackward0",
     "CoshBackward0", "EluBackward0", "ErfBackward0", "ExpBackward0",
     "Expm1Backward0", "GeluBackward0", "HardsigmoidBackward0", "LeakyReluBackward0",
     "Log1PBackward0", "Log2Backward0", "LogBackward0", "LogSigmoidBackward0", "NegBackward0",
     "PowBackward0", "ReciprocalBackward0", "ReluBackward0", "RsqrtBackward0", "SigmoidBackward0",
     "SiluBackward0", "SinBackward0", "SinhBackward0", "SoftplusBackward0", "SqrtBackward0",
     "TanhBackward0"}
)  # fmt: skip
"""Nodes of operators of which each entry of the output is a function of one entry of one input.

Not `ClampBackward0`, whose bounds are tensors that may be learned and broadcast."""

_OF_PAIRS = frozenset(
    {"AddBackward0", "AliasBackward0", "CloneBackward0", "DivBackward0", "MulBackward0",
     "SubBackward0"}
)  # fmt: skip
"""Nodes of operators that work entry by entry on two inputs, which are broadcast, and of copies."""

_RULES: Mapping[str, Callable[[Any, FactoredGradient, tuple[int, ...]], OfParents | None]] = {
    "AddBackward0": _sum,
    "AliasBackward0": _reshape,
    "BmmBackward0": _matrix_product,
    "CloneBackward0": _reshape,
    "DivBackward0": _quotient,
    "ConstantPadNdBackward0": _border,
    "ExpandBackward0": _broadcast,
    "FftC2CBackward0": _spectrum,
    "FftR2CBackward0": _spectrum,
    "LinalgVectorNormBackward0": _reduction,
    "MeanBackward0": _reduction,
    "MeanBackward1": _reduction,
    "MmBackward0": _matrix_product,
    "MulBackward0": _product,
    "PermuteBackward0": _permute,
    "ReshapeAliasBackward0": _reshape,
    "SelectBackward0": _component,
    "SqueezeBackward0": _reshape,
    "SqueezeBackward1": _reshape,
    "SubBackward0": _sum,
    "SumBackward0": _reduction,
    "SumBackward1": _reduction,
    "TBackward0": _permute,
    "TransposeBackward0": _permute,
    "UnsafeViewBackward0": _reshape,
    "UnsqueezeBackward0": _reshape,
    "ViewAsComplexBackward0": _as_real,
    "ViewAsRealBackward0": _as_complex,
    "ViewBackward0": _reshape,
}
"""Name of a node of autograd's graph -> the gradients of its inputs."""

_HOLOMORPHIC = frozenset(
    {"AddBackward0", "AliasBackward0", "BmmBackward0", "CloneBackward0", "ConstantPadNdBackward0",
     "DivBackward0", "ExpBackward0", "ExpandBackward0", "Expm1Backward0", "FftC2CBackward0",
     "FftR2CBackward0", "LogBackward0", "MmBackward0", "MulBackward0", "NegBackward0",
     "PermuteBackward0", "ReciprocalBackward0", "ReshapeAliasBackward0", "SqueezeBackward0",
     "SqueezeBackward1", "SubBackward0", "SumBackward0", "SumBackward1", "TBackward0",
     "TransposeBackward0", "UnsafeViewBackward0", "UnsqueezeBackward0", "ViewAsComplexBackward0",
     "ViewBackward0"}
)  # fmt: skip
"""Nodes that are gone through for complex numbers as well: operators whose derivative is a complex
number, not a matrix of real ones."""
