"""Records of what a folder of results was begun with, by which going on is checked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from upslope.errors import RunError
from upslope.files import from_json, read_digested_json, to_json, write_digested_json


def record_or_compare(path: Path, record: dict[str, Any]) -> None:
    """Write down what a folder is begun with, or compare it with what stands there.

    path: the record's. record: plain data. What does not stand there, as an earlier version did not
    write it, is not compared.

    Raises:
        RunError: the folder was begun with something else, or its record is damaged.
    """
    if not path.is_file():
        write_digested_json(path, record)
        return
    earlier = read_digested_json(path)
    if earlier is None:
        raise RunError(f"Expected the record of a pool in {path} but it is damaged. Restore it.")
    plain = from_json(to_json(record))
    for key in record:
        if key in earlier and earlier[key] != plain[key]:
            raise RunError(
                f"Expected {path.parent} to be gone on with as it was begun but {key} was "
                f"{earlier[key]!r} and is {plain[key]!r} now. Give the same, or another folder."
            )


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers of a network, in hexadecimal.

    model: the network.
    """
    sha256 = hashlib.sha256(type(model).__name__.encode())
    for key, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        sha256.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
