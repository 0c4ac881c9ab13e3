"""Records of what a folder of results was begun with, by which going on is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from upslope.errors import RunError
from upslope.files import from_json, read_digested_json, to_json, write_digested_json
from upslope.tensor_digest import add_tensors

_SHORT, _NAMES = 8, 3
"""Values that two lists may have together to be told whole; of longer ones, how many are named."""


def record_or_compare(
    path: Path,
    record: dict[str, Any],
    may_become: Mapping[str, Callable[[Any, Any], bool]] | None = None,
) -> None:
    """Write down what a folder is begun with, or compare it with what stands there.

    path: the record's. record: plain data. What does not stand there, as an earlier version did not
    write it, is not compared. may_become: key -> whether a value may become another, (what it was,
    what it is) -> bool; such a change is written down.

    Raises:
        RunError: the folder was begun with something else, or its record is damaged.
    """
    new_record = record_to_write(path, record, may_become)
    if new_record is not None:
        write_digested_json(path, new_record)


def record_to_write(
    path: Path,
    record: dict[str, Any],
    may_become: Mapping[str, Callable[[Any, Any], bool]] | None = None,
) -> dict[str, Any] | None:
    """Return what `record_or_compare` writes down; None where it stands there. Raises as it does.

    path, record, may_become: as of `record_or_compare`.
    """
    if not path.is_file():
        return record
    earlier = read_digested_json(path)
    if earlier is None:
        raise RunError(f"Expected the record of a pool in {path} but it is damaged. Restore it.")
    plain = from_json(to_json(record))
    differing_keys = [key for key in record if key in earlier and earlier[key] != plain[key]]
    for key in differing_keys:
        if not (may_become and key in may_become and may_become[key](earlier[key], plain[key])):
            raise RunError(
                f"Expected {path.parent} to be gone on with as it was begun but "
                f"{_difference(key, earlier[key], plain[key])}. Give the same, or another folder."
            )
    if not differing_keys:
        return None
    return {**earlier, **{key: plain[key] for key in differing_keys}}


def _difference(key: str, before: Any, now: Any) -> str:
    """Say what differs: of long lists, what is new and what is gone, a few of each."""
    if not (isinstance(before, list) and isinstance(now, list) and len(before + now) > _SHORT):
        return f"{key} was {before!r} and is {now!r} now"
    old, new = _without(before, now), _without(now, before)
    parts = [
        f"{len(values):,} {'is' if len(values) == 1 else 'are'} {state}, "
        f"{', '.join(map(repr, values[:_NAMES]))}{' ...' if len(values) > _NAMES else ''}"
        for values, state in ((old, "not there any more"), (new, "new"))
        if values
    ]
    return f"of {key} {'; '.join(parts)}" if parts else f"the order of {key} is another"


def _without(values: list[Any], others: list[Any]) -> list[Any]:
    there = set(map(to_json, others))
    return [value for value in values if to_json(value) not in there]


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers of a network, in hexadecimal.

    model: the network.
    """
    sha256 = hashlib.sha256(type(model).__name__.encode())
    add_tensors(sha256, model.state_dict().items())
    return sha256.hexdigest()
