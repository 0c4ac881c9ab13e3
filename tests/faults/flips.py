"""Bit flips in every file of a run: each is noticed, mended or without effect."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

from tests.faults.commands import LOCK
from tests.faults.subject import go_on, stop_midway
from tests.faults.trials import Trial

from upslope.errors import UpslopeError

SUBJECT = "a run"
_PATIENCE = 120.0  # seconds for what takes one


def flip_a_bit(data: bytes, _name: str, rng: random.Random) -> bytes:
    """Return a file with one wrong bit."""
    out = bytearray(data)
    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


class FlippedRun:
    """A run stopped in the middle of a training, whose files get a wrong bit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stop_midway(folder)
        files = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        self.files = sorted(p for p in files if p.name != LOCK and (folder / p).stat().st_size)
        whole = folder.with_name("flips-whole")
        shutil.copytree(folder, whole)
        self.expected = go_on(whole)
        shutil.rmtree(whole)

    def flip(self, trial: Trial, scratch: Path) -> None:
        """Flip one bit in a file of a copy, and go on with it, in a process of its own."""
        rng, copy = trial.rng, scratch / "run"
        shutil.copytree(self.folder, copy)
        victim = rng.choice(self.files)
        before = (copy / victim).read_bytes()
        after = flip_a_bit(before, victim.name, rng)
        (copy / victim).write_bytes(after)
        trial.faults += 1
        outcome, find = self._outcome(copy)
        place = next(i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
        trial.note(outcome, f"byte {place} of {victim}: {find}")

    def _outcome(self, copy: Path) -> tuple[str, str]:
        ours, theirs = os.pipe()
        if (pid := os.fork()) == 0:
            code = 1
            try:
                os.close(ours)
                sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
                with os.fdopen(theirs, "w") as pipe:
                    pipe.write(self._try(copy))
                code = 0
            finally:
                os._exit(code)
        os.close(theirs)
        deadline = time.monotonic() + _PATIENCE
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os.close(ours)
                return "hung", ""
            time.sleep(0.01)
        _, status = os.waitpid(pid, 0)
        with os.fdopen(ours) as pipe:
            text = pipe.read()
        if status:
            return "crashed", f"exit code {os.waitstatus_to_exitcode(status)}"
        outcome, _, find = text.partition("\n")
        return outcome, find

    def _try(self, copy: Path) -> str:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                got = go_on(copy)
        except UpslopeError:
            return "refused"
        except Exception as error:  # counted, and named: this is what the campaign looks for
            return f"foreign\n{type(error).__name__}: {error}"
        return "same" if got == self.expected else "different"
