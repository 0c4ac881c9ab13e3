"""Which rank has died: those that live leave word in the store that torchrun keeps for all.

A broken connection names an address and no rank. So every rank that meets one writes its number,
and after a moment the missing numbers are those of the dead.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_MOMENT_SECONDS = 1.0
"""Within this time every living rank has met the broken connection, and written its number."""

_GOES_ON = (
    "Nothing recorded is lost: the same command goes on, also with another number of processes."
)
_STORE_ERRORS = (RuntimeError, ValueError)
"""What a store raises whose process is gone; torch derives its own errors from these."""


@dataclass(frozen=True)
class Survivors:
    """The list of living ranks. store: of `torch.distributed`. rank, size: of this process."""

    store: Any
    rank: int
    size: int

    def leave_word(self) -> None:
        """Write that this rank lives, or that it has ended by itself."""
        with suppress(*_STORE_ERRORS):
            self.store.set(f"upslope/alive/{self.rank}", "1")

    def explain_loss(self) -> str:
        """Return what to tell of a broken connection; empty where another rank tells it.

        Rank 0 tells it where it lives, and otherwise the first that does.
        """
        self.leave_word()
        time.sleep(_MOMENT_SECONDS)
        try:
            dead = [r for r in range(self.size) if not self.store.check([f"upslope/alive/{r}"])]
        except _STORE_ERRORS:  # without torchrun the store is rank 0's, and dies with it
            dead = [0]
        if min(r for r in range(self.size) if r not in dead or r == self.rank) != self.rank:
            return ""
        if not dead:
            return (
                f"Expected the {self.size} processes to stay connected but they lost touch. "
                f"{_GOES_ON}"
            )
        names = f"{'rank' if len(dead) == 1 else 'ranks'} {', '.join(map(str, dead))}"
        return f"Expected all {self.size} processes to keep running but {names} ended. {_GOES_ON}"
