"""Work on its way to other processes, without what they hold already.

Every process has opened the pool and can build the network. A parcel names these instead of
holding them; the weights travel as tensors, once per network. Only processes of one command
exchange parcels: nothing here reads what came from elsewhere.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from upslope.distributed.engine import Work
from upslope.tensor_digest import add_tensors

UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError)
"""What `pickle` raises for what cannot travel."""

_MODEL = "the network of the work"
_HERE: list[torch.device] = [torch.device("cpu")]
"""The device of this process while a parcel is opened: `pickle` passes nothing to constructors."""


@dataclass(frozen=True)
class Parcel:
    """Pickled work. weights: name -> tensor on the CPU, None where the receiver holds them.

    digest: SHA-256 of the weights. strides: name -> order of memory of each, which decides bits.
    """

    data: bytes
    digest: str
    strides: Mapping[str, tuple[int, ...]]
    weights: dict[str, Tensor] | None


@dataclass
class Holdings:
    """What a process of a command holds itself: the same objects under the same names in each.

    objects: name -> data set, or whatever is not to travel. make_model: returns a network as that
    of the work, with any weights; None where the network travels as it is.
    """

    objects: Mapping[str, Any]
    make_model: Callable[[], nn.Module] | None
    device: torch.device
    _model: tuple[str, nn.Module] | None = field(default=None, init=False)
    _digest_sent: str = field(default="", init=False)

    def pack(self, work: Work, *, whole: bool = False) -> Parcel:
        """Return the work for processes with the same holdings.

        whole: with the weights, although the last parcel had the same: for processes that may not
        have opened it.

        Raises:
            pickle.PicklingError, AttributeError, TypeError: the work cannot travel.
        """
        buffer = io.BytesIO()
        model = work.model if self.make_model else None
        _Pickler(buffer, self.objects, model, work.device).dump(work)
        if model is None:
            return Parcel(buffer.getvalue(), "", {}, None)
        weights = {k: v.detach().cpu() for k, v in model.state_dict().items()}
        digest = _digest(weights)
        is_sent = digest == self._digest_sent and not whole
        self._digest_sent = digest
        strides = {name: p.stride() for name, p in model.named_parameters()}
        return Parcel(buffer.getvalue(), digest, strides, None if is_sent else weights)

    def unpack(self, parcel: Parcel) -> Any:
        """Return the work, on the device of this process and with its own network and data."""
        _HERE[0] = self.device
        model = self._take(parcel) if parcel.digest else None
        return _Unpickler(io.BytesIO(parcel.data), self.objects, model).load()

    def _take(self, parcel: Parcel) -> nn.Module:
        """Return the network of this process with the weights of a parcel."""
        if parcel.weights is not None:
            assert self.make_model is not None  # as the sender had it
            model = self._model[1] if self._model else self.make_model().to(self.device)
            for name, p in model.named_parameters():
                if p.stride() != parcel.strides[name]:
                    p.data = torch.empty_strided(
                        p.shape, parcel.strides[name], dtype=p.dtype, device=p.device
                    )
            model.load_state_dict(parcel.weights)
            self._model = (parcel.digest, model.eval())
        assert self._model is not None  # the first parcel of a network holds its weights
        assert self._model[0] == parcel.digest
        return self._model[1]


def pack_or_warn(holdings: Holdings, work: Work, who: str, *, whole: bool = False) -> Parcel | None:
    """Return work as a parcel; None, with a warning, where it cannot travel.

    who: computes it then, in words. whole: as for `Holdings.pack`.
    """
    try:
        return holdings.pack(work, whole=whole)
    except UNPICKLABLE as error:
        warnings.warn(
            f"This part of scoring cannot travel to other processes ({error}) and is computed by "
            f"{who}: the numbers are the same, and the others wait.",
            stacklevel=3,
        )
        return None


class _Pickler(pickle.Pickler):
    """Replaces held objects by their names, and the sender's device by the receiver's."""

    def __init__(
        self,
        buffer: io.BytesIO,
        objects: Mapping[str, Any],
        model: nn.Module | None,
        device: torch.device,
    ) -> None:
        super().__init__(buffer, protocol=5)
        self._names = {id(value): name for name, value in objects.items()}
        self._model, self._device = model, device

    def persistent_id(self, value: Any) -> str | None:
        if self._model is not None and value is self._model:
            return _MODEL
        return self._names.get(id(value))

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.device and value == self._device:
            return _device_here, ()
        if type(value) is Tensor and value.device == self._device and value.device.type != "cpu":
            return _tensor_here, (value.detach().cpu(),)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, buffer: io.BytesIO, objects: Mapping[str, Any], model: nn.Module | None
    ) -> None:
        super().__init__(buffer)
        self._objects = {**objects, _MODEL: model}

    def persistent_load(self, name: str) -> Any:
        return self._objects[name]


def to_cpu(value: Any) -> Any:
    """Return a result, or the state of an optimiser, with its tensors on the CPU, to travel."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: to_cpu(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(to_cpu(one) for one in value)
    return value


def _device_here() -> torch.device:
    return _HERE[0]


def _tensor_here(value: Tensor) -> Tensor:
    return value.to(_HERE[0])


def _digest(weights: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256()
    add_tensors(sha256, weights.items())
    return sha256.hexdigest()
