"""The network of a run: recorded when it begins, and compared whenever it is gone on with.

In Python a network is a function that no configuration names, and what decides its numbers beside
its weights lies in attributes of its modules: the rate of a dropout, the epsilon of a
normalisation, the stride of a convolution. Two that differ in these alone have weights of the same
names and shapes, so that a run would go on under the other one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upslope.counts import list_some
from upslope.errors import ModelError
from upslope.network_outputs import describe_outputs, same_outputs
from upslope.plain_settings import plain_entries

_MODULES, _SETTINGS, _WEIGHTS, _OUTPUTS = "modules", "settings", "weights", "outputs"
_NUMBERS = "numbers"
_MOST_NAMES = 5
_ABSENT = "none"
_EVERY_MODULE = {*vars(nn.Module()), "training"}
"""Attributes that torch gives every module: its mode, its weights and hooks."""

NetworkRecord = Mapping[str, Mapping[str, Any]]
"""Class of each module by its name, settings by module and attribute, shapes of weights by name;
and numbers of its outputs (`network_outputs`), where they are known."""


def describe_network(model: nn.Module) -> NetworkRecord:
    """Return what decides a network's numbers beside the values of its weights, as JSON has it.

    Settings are what modules hold as attributes: numbers, words, names of functions, and
    containers of these. Words that may be a path or a device are left out, since a run may go on
    elsewhere.
    """
    modules = dict(model.named_modules())
    settings = {
        f"{name}.{key}".removeprefix("."): value
        for name, module in modules.items()
        for key, value in plain_entries(vars(module)).items()
        if key not in _EVERY_MODULE
    }
    record = {
        _MODULES: {name: type(module).__name__ for name, module in modules.items()},
        _SETTINGS: settings,
        _WEIGHTS: _describe_weights(model),
    }
    as_read_back: NetworkRecord = json.loads(json.dumps(record))  # with lists for tuples
    return as_read_back


def describe_as_it_is(model: nn.Module, shape: Sequence[int]) -> NetworkRecord:
    """Return the description of a network that nobody here can build again.

    Of settings it has those of torch's modules alone: what other modules hold may be another each
    time they are made, and shows in the outputs where it counts.

    model: trained. shape: of one input, floats.
    """
    record = describe_network(model)
    names = [name for name, m in model.named_modules() if type(m).__module__.startswith("torch.")]
    settings = {
        key: value for key, value in record[_SETTINGS].items() if key.rpartition(".")[0] in names
    }
    outputs = outputs_record(lambda: model, lambda: torch.zeros(1, *shape))
    return {**record, _SETTINGS: settings, **outputs}


def describe_lastingly(
    build: Callable[[], nn.Module], sample: Callable[[], Tensor] | None = None
) -> NetworkRecord:
    """Return the description of a network without settings that are others each time it is built.

    Counters of instances and random names are such: by them a run could never be gone on with.

    build: makes the network, with the same weights each time. sample: gives a prepared batch; None
    to tell nothing of outputs.
    """
    first, second = (describe_network(build()) for _ in range(2))
    settings = {k: v for k, v in first[_SETTINGS].items() if second[_SETTINGS].get(k) == v}
    outputs = outputs_record(build, sample) if sample is not None else {}
    return {**first, _SETTINGS: settings, **outputs}


def outputs_record(build: Callable[[], nn.Module], sample: Callable[[], Tensor]) -> NetworkRecord:
    """Return the part of a record that tells what `forward` computes; empty where it cannot.

    build, sample: as of `describe_lastingly`.
    """
    numbers = describe_outputs(build, sample)
    return {_OUTPUTS: {_NUMBERS: numbers}} if numbers else {}


def tells_outputs(record: NetworkRecord) -> bool:
    """Return whether a record has numbers of outputs."""
    return _OUTPUTS in record


def network_differences(before: NetworkRecord, now: NetworkRecord) -> list[str]:
    """Return what differs between two networks, in words; shapes of weights come first.

    before: as recorded when a run began. now: as `describe_network` tells of the network given.

    Outputs are compared where both have some, and where nothing else differs. Settings that only
    one of them has are passed over: other versions of libraries have others.
    """
    differences = []
    for part in (_WEIGHTS, _MODULES, _SETTINGS):
        old_values, new_values = before[part], now[part]
        names = (
            old_values.keys() & new_values.keys()
            if part == _SETTINGS
            else old_values.keys() | new_values.keys()
        )
        pairs = {k: (old_values.get(k, _ABSENT), new_values.get(k, _ABSENT)) for k in names}
        differences += [
            f"{name or 'the whole'} {then} instead of {other}"
            for name, (then, other) in sorted(pairs.items())
            if then != other
        ]
    then_outputs, outputs = (r.get(_OUTPUTS, {}).get(_NUMBERS, []) for r in (before, now))
    if not differences and not same_outputs(then_outputs, outputs):
        differences = [
            "other outputs of the same modules (`forward`, or what it calls, computes otherwise)"
        ]
    return differences


def is_other_network(before: NetworkRecord, now: NetworkRecord) -> bool:
    """Say whether a network is not the recorded one, or is not recorded as far as it can be.

    before: as recorded, or empty. now: of the network given.
    """
    is_told_more = tells_outputs(now) and not tells_outputs(before)
    return not before or is_told_more or bool(network_differences(before, now))


def check_network_record(before: NetworkRecord, now: NetworkRecord, folder: Path) -> None:
    """Raise ModelError unless the network of a run is the one that it began with.

    before: as recorded. now: of the network given. folder: of the run.
    """
    differences = network_differences(before, now)
    if differences:
        raise ModelError(
            f"Expected the network given to be the one with which the run in {folder} began but "
            f"that was another network: {list_differences(differences)}. Give the network of the "
            "run, or begin a run in another folder."
        )


def list_differences(differences: Sequence[str]) -> str:
    """Return the first differences in words, and how many more there are."""
    return list_some(differences, _MOST_NAMES)


def _describe_weights(model: nn.Module) -> dict[str, str]:
    """Shape of each weight, its type where that is not float32, and whether it is not trained."""
    frozen_names = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    return {
        name: f"{tuple(value.shape)}"
        f"{'' if value.dtype == torch.float32 else f' {value.dtype}'.replace('torch.', '')}"
        f"{' without gradient' if name in frozen_names else ''}"
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)
    }
