"""How torchrun tells a process its place: by variables of the environment. Imports no torch."""

from __future__ import annotations

import os

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def count_processes() -> int:
    """Return how many processes torchrun has started for this command; 1 outside of it."""
    return max(1, int(os.environ["WORLD_SIZE"])) if _is_launched() else 1


def rank_of_process() -> int:
    """Return the rank of this process among them; 0 outside of torchrun."""
    return int(os.environ["RANK"]) if _is_launched() else 0


def place_on_machine() -> tuple[int, int]:
    """Return (rank among the processes of this machine, how many there are)."""
    local = int(os.environ.get("LOCAL_RANK", rank_of_process()))
    return local, int(os.environ.get("LOCAL_WORLD_SIZE", count_processes()))


def _is_launched() -> bool:
    return all(name in os.environ for name in _VARIABLES)
