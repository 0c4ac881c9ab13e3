"""The digest of tensors, by which weights are told from others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor


def add_tensors(sha256: hashlib._Hash, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Add names, types, shapes and numbers of tensors to a digest, in the order given.

    Digests are recorded in ledgers and checkpoints: another way to write them would make each of
    these a stranger.

    sha256: of hashlib. tensors: pairs of a name and a tensor, on any device.
    """
    for name, tensor in tensors:
        here = tensor.detach().cpu().contiguous()
        sha256.update(f"{name} {here.dtype} {tuple(here.shape)}".encode())
        sha256.update(here.reshape(-1).view(torch.uint8).numpy().data)
