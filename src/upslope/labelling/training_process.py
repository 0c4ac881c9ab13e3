"""The server's side of training: starts the trainer, tells it of answers, takes its rankings."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from upslope.errors import UpslopeError
from upslope.labelling.ranking import Ranking

_LINE = 1 << 26  # bytes of a ranking at most
_PAUSE = 5.0  # seconds before a trainer that ended is started again
_ATTEMPTS = 3


class TrainingProcess:
    """A trainer in a process of its own.

    take: is called with each new ranking. problem: what ended the last trainer, None while one
    runs; people go on labelling, at random, where it cannot.
    """

    def __init__(self, folder: Path, take: Callable[[Ranking], None]) -> None:
        self._folder, self._take = folder, take
        self._process: asyncio.subprocess.Process | None = None
        self.problem: str | None = None

    async def run(self) -> None:
        """Keep a trainer running until cancelled, or until several in a row gave no ranking."""
        failures = 0
        while failures < _ATTEMPTS:
            rankings = 0
            try:
                async for ranking in self._rankings():
                    rankings += 1
                    self.problem = self._take_ranking(ranking)
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                # No ranking, or a line beyond the limit.
                self.problem = f"what the process that trains said cannot be read: {error}"
            finally:
                await self._end()
            failures = 0 if rankings else failures + 1
            await asyncio.sleep(_PAUSE)

    def tell(self) -> None:
        """Say that there are new answers; returns at once."""
        process = self._process
        if process is not None and process.stdin is not None and process.returncode is None:
            with contextlib.suppress(ConnectionError, RuntimeError):
                process.stdin.write(b"\n")

    def _take_ranking(self, ranking: Ranking) -> str | None:
        """Hand a ranking over; return what kept its measurement from being recorded, if anything.

        A full disk, for one, must not end training: people are told, and go on when there is room.
        """
        try:
            self._take(ranking)
        except UpslopeError as error:
            return str(error)
        return None

    async def _rankings(self) -> AsyncIterator[Ranking]:
        """Start a trainer and yield its rankings until it ends; `problem` then says why it did."""
        try:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "upslope.labelling.trainer",
                str(self._folder),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE,
                start_new_session=True,  # Ctrl-C is the server's to answer
            )
        except OSError as error:  # Python was installed anew, or there are too many processes
            self.problem = f"the process that trains cannot be started: {error}"
            return
        assert self._process.stdout is not None
        problem = None
        async for line in self._process.stdout:
            if not line.endswith(b"\n"):  # it was killed while it wrote: no ranking to take
                break
            record = json.loads(line)
            problem = record.get("error")
            if problem is None:
                yield Ranking.from_record(record)
        code = await self._process.wait()
        self.problem = problem or f"the process that trains ended with code {code}"

    async def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            # Waited for, or asyncio tells on the terminal that its loop was closed before.
            await self._process.wait()
