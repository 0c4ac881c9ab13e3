"""Randomness without global state: every generator is derived from (seed, purpose, ...).

Two runs that share a seed share what they derive for the same purpose, whatever else they do in
between: that is how strategies get the same initial set, weights and data order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """Return a number below 2**63 that depends on the seed and the whole purpose, and on nothing
    else.
    """
    text = "\0".join([str(seed), *(f"{type(p).__name__}:{p}" for p in purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a fresh CPU generator for one purpose: the draws are the same on every device."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def global_generator(seed: int, *purpose: str | int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for code that knows no other (initialisation, dropout).

    They are put back afterwards, so that the caller's random numbers are untouched.
    """
    kind = device.type if device.type in ("cuda", "mps", "xpu") else "cuda"
    devices = [device] if device.type not in ("cpu", "meta") else []
    with torch.random.fork_rng(devices=devices, device_type=kind):
        _seed_global_generators(derive(seed, *purpose))
        yield


def _seed_global_generators(number: int) -> None:
    """Seed torch's global generators of all devices, or the CPU's alone where there are no others.

    Without a GPU, each `torch.manual_seed` keeps a stack trace for the day when CUDA is first used:
    milliseconds a call, and memory that is never freed.
    """
    if _has_accelerator():
        torch.manual_seed(number)
    else:
        torch.default_generator.manual_seed(number)


@cache
def _has_accelerator() -> bool:
    return torch.accelerator.is_available()


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On the CPU, operations that give the same bits on every run; elsewhere as torch is set."""
    if device.type != "cpu":
        yield
        return
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    extras: Any = torch.utils.deterministic
    fill = extras.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling every new tensor guards against reading garbage, at a cost in each operation.
    extras.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was_deterministic, warn_only=warn_only)
        extras.fill_uninitialized_memory = fill
