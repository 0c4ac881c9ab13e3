"""Everything that a training in progress is, to and from one safetensors file: never a pickle."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upslope.checkpoints import check_network, load_tensors, save_tensors
from upslope.errors import ModelError
from upslope.tensor_digest import add_tensors
from upslope.training.auxiliary_module import AuxiliaryModule


@dataclass
class Position:
    """How far a training is: the next batch is number `step` of epoch `epoch`.

    loss_sum, seen: over the batches of this epoch so far; last_loss: mean of the epoch before.
    seconds: spent in the sittings before this one. best, best_epoch: on the validation set.
    random: states of the generators in the middle of an epoch.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seen: int = 0
    last_loss: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    random: dict[str, Tensor] = field(default_factory=dict)


_PLAIN = ("epoch", "step", "loss_sum", "seen", "last_loss", "seconds", "best", "best_epoch")

_DIGEST = "digest"
"""The entry of the header that holds the digest of all else."""


def save_position(
    path: Path,
    key: str,
    position: Position,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    companion: AuxiliaryModule | None,
) -> None:
    """Write a checkpoint; `key` says which training it belongs to."""
    states = optimizer.state_dict()["state"]
    tensors = {
        **_with_prefix("model", model.state_dict()),
        **{f"optimizer.{i}.{k}": v for i, s in states.items() for k, v in _tensors(s).items()},
        **_with_prefix("companion", companion.state() if companion else {}),
        **_with_prefix("best", position.best_weights),
        **_with_prefix("random", position.random),
    }
    header = {
        "key": key,
        "position": {name: getattr(position, name) for name in _PLAIN},
        "scaler": scaler.state_dict(),
    }
    header[_DIGEST] = _digest(tensors, header)
    save_tensors(path, tensors, header)


def load_position(
    path: Path,
    key: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    companion: AuxiliaryModule | None,
) -> Position:
    """Take a checkpoint back, or the start where there is none of this training.

    One that is damaged is set aside, with a warning: the training begins anew.

    Raises:
        ModelError: it is of another network than `model`.
    """
    if not path.exists():
        return Position()
    try:
        tensors, header = load_tensors(path)
        is_damaged = _is_damaged(tensors, header)
        other = not is_damaged and header.get("key") != key
        plain = header["position"] if not (is_damaged or other) else {}
        if plain:
            _check_plain(plain)
    except (ModelError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        is_damaged, other = True, False
    if is_damaged:
        aside = set_aside(path)
        path.replace(aside)
        warnings.warn(
            f"The checkpoint {path} is damaged. It is set aside as {aside.name}, and this training "
            "begins anew.",
            stacklevel=2,
        )
        return Position()
    if other:
        return Position()
    weights = _without_prefix("model", tensors)
    check_network(model, weights, path)
    model.load_state_dict(weights)
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in _without_prefix("optimizer", tensors).items():
        number, _, entry = name.partition(".")
        states.setdefault(int(number), {})[entry] = value
    load_optimizer(optimizer, {**optimizer.state_dict(), "state": states})
    if header["scaler"]:
        scaler.load_state_dict(header["scaler"])
    if companion:
        companion.load(_without_prefix("companion", tensors))
    return Position(
        **header["position"],
        best_weights=_without_prefix("best", tensors),
        random=_without_prefix("random", tensors),
    )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take back the state of an optimiser, each tensor in the order of memory of its parameter.

    There it had it. Of tensors in different orders entries are added one by one, which may round
    otherwise.
    """
    optimizer.load_state_dict(state)
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter).copy_(value)


def _is_damaged(tensors: Mapping[str, Tensor], header: dict[str, Any]) -> bool:
    """Whether a digest shows that a checkpoint is not as it was written; it is then taken out.

    Checkpoints of earlier versions have none. So has one whose digest lost its name to damage, and
    which shows it by its value.
    """
    if _DIGEST in header:
        return bool(header.pop(_DIGEST) != _digest(tensors, header))
    return any(
        value == _digest(tensors, {k: v for k, v in header.items() if k != name})
        for name, value in header.items()
        if isinstance(value, str)
    )


def set_aside(path: Path) -> Path:
    """Return where a checkpoint goes that cannot be used."""
    return path.with_name(f"{path.name}.damaged")


def _check_plain(position: dict[str, Any]) -> None:
    """Raise ValueError for numbers that no training has: of a file without a digest."""
    counts = [position[name] for name in ("epoch", "step", "seen")]
    if set(position) != set(_PLAIN) or not all(isinstance(n, int) and n >= 0 for n in counts):
        raise ValueError("not a position")


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    """SHA-256 of everything that a checkpoint holds, so that no damage to it goes unnoticed."""
    sha256 = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    add_tensors(sha256, ((name, tensors[name]) for name in sorted(tensors)))
    return sha256.hexdigest()


def _tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if isinstance(v, Tensor)}


def _with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
