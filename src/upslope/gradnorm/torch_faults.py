"""Faults of PyTorch that spoil gradients, and the way around them.

In the backward pass of `batch_norm` in eval mode, and of `instance_norm` in any mode, the CPU
kernel reads some inputs or incoming gradients in the wrong order: it takes them for tensors whose
channels lie last in memory, or for others, by strides of dimensions of size one, which say nothing.
All three gradients are then wrong, by tens of per cent. Such strides are

- (C, 1, W * C, C) of one sample, for `batch_norm`: a product of transposed tokens gives them;
- those of many samples of height or width one, for `batch_norm`;
- any with channels last, of one sample, for `instance_norm`: every convolution gives them.

Seen in PyTorch 2.13.0 on a CPU, in float32 and float64. Not seen, in the same search over strides,
in `group_norm`, `layer_norm`, pooling, padding or interpolation. Of convolutions, see
`kernels/conv/gradients`.

The backward pass of `group_norm` ends the process (a segmentation fault) on a CPU where the input
has its channels last and the gradients of scale or shift are asked for without the input's: of a
frozen network with trained normalisations, say. Their input is laid out in the plain order.

That of a convolution of single pixels with a stride, of fewer than eight channels, writes behind
the end of its memory on processors without AVX-512, where the channels lie last and the gradient of
the weight is asked for; a transposed one does so where it makes that few. All of it is laid out in
the plain order.

Beside them, cuDNN's recurrences have no backward pass in eval mode: PyTorch's own run instead, and
so does its LSTM under autocast on a processor for which oneDNN has none in half precision. And a
small float32 volume that goes through a convolution alone is unfolded on a CPU, into 27 times its
size for a kernel of 3 x 3 x 3; two are not, so it goes twice, and one output is left out.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

_BATCH = frozenset({F.batch_norm, torch.batch_norm})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
_VOLUMES = frozenset({F.conv3d, F.conv_transpose3d})
_INSTANCE = frozenset({F.instance_norm, torch.instance_norm})
_GROUP = frozenset({F.group_norm, torch.group_norm})
_IMAGES = frozenset({F.conv2d, F.conv_transpose2d})
_FEW = 8
"""Channels of one register of AVX2."""
LARGE_VOLUME = 20_480
"""Channels times depth times height above which PyTorch unfolds no volume (`use_mkldnn` in its
Convolution.cpp)."""
FAULTY = _BATCH | _INSTANCE
"""The functions whose backward pass reads some gradients in the wrong order."""

NAMES = _RECURRENT | {func.__name__ for func in FAULTY | _VOLUMES}
"""The names of all operators that `run_exactly` may run in another way than it is told to."""


class exact_batch_norm(TorchFunctionMode):  # noqa: N801 (entered like a function)
    """Make the gradients of batch and instance normalisation exact while this is entered.

    Those of group normalisation and of convolutions are made without ending the process. Outputs
    stay as they are, also in memory, but for rounding. It is entered around the forward pass; the
    backward pass may come later.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one operator, exactly if it is a faulty one."""
        kwargs = kwargs or {}
        # Here alone, for kernels ask for the input's gradient only.
        if func in _GROUP:
            return _run_group_norm(func, args, kwargs)
        run = _run_convolution if func in _IMAGES else run_exactly
        return run(func, args, kwargs)


def _run_group_norm(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run a group normalisation on its input in the plain order.

    The output lies in memory as PyTorch leaves it: a model that draws noise like it would else meet
    the same numbers in other places.
    """
    input = args[0] if args else kwargs["input"]
    args, kwargs = _with_input(_plain, args, kwargs)
    return func(*args, **kwargs).contiguous(memory_format=suggest_memory_format(input))


def _run_convolution(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run a convolution, in the plain order if its backward pass would write where it must not.

    The output lies in memory as PyTorch leaves it; see `_run_group_norm`.
    """
    input, weight, stride = (
        kwargs.get(name, args[place] if len(args) > place else 1)
        for place, name in ((0, "input"), (1, "weight"), (3, "stride"))
    )
    has_few = tuple(weight.shape[2:]) == (1, 1) and weight.shape[1] < _FEW
    strides = stride if isinstance(stride, Sequence) else (stride,)
    if not has_few or max(strides) == 1 or input.device.type != "cpu":
        return func(*args, **kwargs)
    order = torch.channels_last
    last = any(suggest_memory_format(x) is order for x in (input, weight))
    rest = {name: kwargs[name] for name in kwargs.keys() - {"input", "weight"}}
    output = func(_plain(input), _plain(weight), *args[2:], **rest)
    return output.contiguous(memory_format=order) if last and output.dim() == 4 else output


def _format_of_batch_norm(input: Tensor) -> torch.memory_format:
    """Return the memory format in which PyTorch leaves the output of a batch normalisation."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim())
    if last is None or input.is_contiguous() or not input.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def run_exactly(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run any operator; of one in `FAULTY`, lay out the input and the gradient of the output."""
    if func not in FAULTY:
        name = getattr(func, "__name__", "")
        if name in _RECURRENT and _is_on_gpu(args):
            # cuDNN's kernel would raise in the backward pass, in eval mode.
            with torch.backends.cudnn.flags(enabled=False):
                return func(*args, **kwargs)
        if name == "lstm" and torch.is_autocast_enabled("cpu") and not _is_on_gpu(args):
            half = torch.get_autocast_dtype("cpu")
            if not _has_lstm(half):
                with torch.autocast("cpu", enabled=False):
                    return func(*_in_type(half, args), **kwargs)
        if func in _VOLUMES and args and is_unfolded(args[0]):
            return func(twice(args[0]), *args[1:], **kwargs)[:1]
        return func(*args, **kwargs)
    is_batch_norm = func in _BATCH
    order = in_order if is_batch_norm else _plain
    as_groups = _as_group_norm.get(func)
    if as_groups is not None:
        func, args, kwargs = as_groups(*args, **kwargs) or (func, args, kwargs)
    input = args[0] if args else kwargs["input"]
    args, kwargs = _with_input(order, args, kwargs)
    output = func(*args, **kwargs)
    if output.requires_grad:
        output.register_hook(order)
    # As of `_run_group_norm`; instance normalisation leaves it in the plain order anyway.
    return (
        output.contiguous(memory_format=_format_of_batch_norm(input)) if is_batch_norm else output
    )


def _with_input(
    order: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a normalisation with its input laid out by `order`."""
    if args:
        return (order(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": order(kwargs["input"])}


_Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def _function_as_group_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Call | None:
    """Return `F.instance_norm` as a group normalisation; see `_operator_as_group_norm`."""
    statistics = (running_mean, running_var, use_input_stats, momentum, eps, False)
    return _operator_as_group_norm(input, weight, bias, *statistics)


def _operator_as_group_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,  # noqa: ARG001
    eps: float,
    cudnn_enabled: bool,  # noqa: ARG001
) -> _Call | None:
    """Return `torch.instance_norm` as a group normalisation with a group for each channel.

    It is the same function, two to three times as fast on CPUs. None where running statistics take
    part, or where the instance normalisation would refuse.
    """
    has_statistics = running_mean is not None or running_var is not None or not use_input_stats
    if has_statistics or input.dim() < 3 or input.is_cuda or math.prod(input.shape[2:]) < 2:
        return None
    return torch.group_norm, (input, input.shape[1], weight, bias, eps), {}


_as_group_norm: dict[Callable[..., Any], Callable[..., _Call | None]] = {
    F.instance_norm: _function_as_group_norm,
    torch.instance_norm: _operator_as_group_norm,
}


def _is_on_gpu(args: tuple[Any, ...]) -> bool:
    return any(isinstance(value, Tensor) and value.is_cuda for value in args)


def _in_type(dtype: torch.dtype, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments as autocast hands them on: float32 as `dtype`."""
    cast: tuple[Any, ...] = tree_map_only(
        Tensor, lambda x: x.to(dtype) if x.dtype == torch.float32 else x, args
    )
    return cast


@functools.cache
def _has_lstm(dtype: torch.dtype) -> bool:
    """Whether oneDNN has an LSTM of this type for the processor."""
    x, state, w, b = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(4, 1), torch.zeros(4)
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype):
            torch.lstm(x, (state, state), [w, w, b, b], True, 1, 0.0, False, False, True)
    except RuntimeError:
        return False
    return True


def is_unfolded(volumes: Any) -> bool:
    """Whether these are one volume that a convolution would unfold."""
    one = isinstance(volumes, Tensor) and volumes.dim() == 5 and volumes.shape[0] == 1
    is_small = one and math.prod(volumes.shape[1:4]) <= LARGE_VOLUME
    return is_small and volumes.dtype == torch.float32 and volumes.device.type == "cpu"


def twice(volume: Tensor) -> Tensor:
    """Return a batch of the same volume two times, without a copy."""
    return volume.expand(2, *volume.shape[1:])


def in_order(tensor: Tensor) -> Tensor:
    """Return a tensor in one of the orders that batch normalisation reads rightly.

    These are the plain one and, in two and three dimensions, channels last, with the strides that
    a new tensor has. A tensor in another order is copied.
    """
    dims = range(tensor.dim())
    orders = [dims, (0, *dims[2:], 1)] if tensor.dim() > 3 else [dims]
    return tensor if any(_lies(tensor, order) for order in orders) else _copy(tensor)


def _plain(tensor: Tensor) -> Tensor:
    """A tensor in the plain order."""
    return tensor if _lies(tensor, range(tensor.dim())) else _copy(tensor)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _lies(tensor: Tensor, order: Sequence[int]) -> bool:
    """Whether the strides are those of a new tensor in this order, also along size one."""
    step = 1
    for dim in reversed(order):
        if tensor.stride(dim) != step:
            return False
        step *= max(1, tensor.shape[dim])
    return True
