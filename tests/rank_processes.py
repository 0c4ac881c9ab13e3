"""Processes with ranks, as torchrun starts them, for the tests of `upslope.distributed`.

Each is forked with torch imported, so that a group of them is there in well under a second. They
meet over loopback.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from forked import Forked
from upslope.distributed.ranks import Ranks, joined
from upslope.errors import UpslopeError

RankFunction = Callable[..., Any]
"""Called on every rank as f(ranks, *arguments); at the top of a module."""


class Processes:
    """`size` ranks that run a function; what rank 0 returns is in `result` once they have ended."""

    def __init__(self, size: int, function: RankFunction, *arguments: object, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._result = folder / "result.pickle"
        self._result.unlink(missing_ok=True)
        port = _free_port()
        self.ranks = [
            Forked(
                _be_rank, rank, size, port, function, arguments, self._result,
                log=folder / f"rank-{rank}.log",
            )
            for rank in range(size)
        ]  # fmt: skip

    def end(self) -> list[int | None]:
        """Wait for all; returns the exit codes by rank."""
        return [process.end() for process in self.ranks]

    @property
    def output(self) -> str:
        """What all have printed."""
        return "".join(process.output for process in self.ranks)

    @property
    def result(self) -> Any:
        """What the function returned on rank 0; fails where a rank did."""
        codes = self.end()
        assert codes == [0] * len(codes), self.output
        return pickle.loads(self._result.read_bytes())


def run_ranks(size: int, function: RankFunction, *arguments: object, folder: Path) -> Any:
    """Return what a function returns on rank 0 of `size` ranks; of one, it runs here."""
    if size == 1:
        return function(None, *arguments)
    return Processes(size, function, *arguments, folder=folder).result


def _be_rank(
    rank: int,
    size: int,
    port: int,
    function: RankFunction,
    arguments: tuple[object, ...],
    result: Path,
) -> int:
    """Be one rank; errors as the command line tells them, of each rank."""
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    ranks: Ranks | None = None
    try:
        with joined("cpu") as ranks:
            value = function(ranks, *arguments)
            if rank == 0:
                result.write_bytes(pickle.dumps(value))
    except UpslopeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
