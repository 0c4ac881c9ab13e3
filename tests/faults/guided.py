"""Coverage-guided inputs for the readers of one file: atheris keeps those that reach new code.

`inputs` damages files by what their formats are made of; here libFuzzer changes bytes, and goes on
from every input that took another way through Upslope's own code. A reader is fuzzed in a process
of its own, which this module is when it is run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.trials import GOOD, Trial

RUNS = 5_000
"""Inputs of a trial."""
_LONGEST = 4096  # bytes of an input
_SECONDS, _MIB = 20, 3000  # that one input may take; beyond them libFuzzer ends the process
_TIMEOUT_CODE = 70  # of libFuzzer
_COUNTS, _OFTEN = "counts.json", 200
ROOT = Path(__file__).parents[2]


def available() -> bool:
    """Whether atheris is installed: it has wheels for Linux and some versions of Python."""
    return importlib.util.find_spec("atheris") is not None


def fuzz(trial: Trial, folder: Path, finds: Path) -> None:
    """Fuzz the reader of a trial; inputs that went wrong are kept in `finds`."""
    finds.mkdir(parents=True, exist_ok=True)
    address = f"guided-{trial.subject}-{trial.seed}-{trial.number}".replace(", ", "-")
    command = [
        sys.executable, "-m", "tests.faults.guided", trial.subject, str(folder),
        str(finds / address), str(trial.rng.randrange(1, 2**31)), str(RUNS),
    ]  # fmt: skip
    paths = os.pathsep.join([str(ROOT), *sys.path])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
        errors="replace",
    )  # fmt: skip
    counts: dict[str, Any] = json.loads((folder / _COUNTS).read_text(encoding="utf-8"))
    for outcome, number in counts["outcomes"].items():
        trial.outcomes[outcome] += number
    trial.finds += counts["finds"]
    trial.faults += sum(trial.outcomes.values())
    if done.returncode:
        outcome = "hung" if done.returncode == _TIMEOUT_CODE else "crashed"
        trial.note(outcome, f"exit code {done.returncode}: {done.stderr[-800:]}")


def _main(name: str, folder: Path, finds: str, seed: int, runs: int) -> None:
    import atheris

    with atheris.instrument_imports(include=["upslope"]):
        from tests.faults.inputs import comparable, judge
        from tests.faults.readers import READERS

        form = READERS[name]
        corpus, work = folder / "corpus", folder / "work"
        for place in (corpus, work):
            place.mkdir()
            form.write(place)
        (file,) = (path for path in work.iterdir() if path.is_file())
        expected = comparable(form.read(work))  # imports what it needs, instrumented as well
    outcomes: Counter[str] = Counter()
    told: list[str] = []

    def read(data: bytes) -> None:
        file.write_bytes(data)
        outcome, find = judge(form, work, expected)
        outcomes[outcome] += 1
        if outcome not in GOOD:
            told.append(f"{outcome}: {find}")
            Path(f"{finds}-{len(told)}-{file.name}").write_bytes(data)
        if sum(outcomes.values()) % _OFTEN == 1 or outcome not in GOOD:
            counts = json.dumps({"outcomes": outcomes, "finds": told})
            (folder / _COUNTS).write_text(counts, encoding="utf-8")

    warnings.simplefilter("ignore")
    options = [
        f"-runs={runs}", f"-seed={seed}", f"-max_len={_LONGEST}", f"-timeout={_SECONDS}",
        f"-rss_limit_mb={_MIB}", f"-artifact_prefix={finds}-", str(corpus),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options], read)
    atheris.Fuzz()


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:4], *map(int, sys.argv[4:]))
