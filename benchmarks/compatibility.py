"""The short tests with each version of Python at hand, and the oldest and newest torch allowed.

With the oldest Python they also run with the lower bounds of all dependencies.

`python benchmarks/compatibility.py` makes an environment for each in `.venv/compatibility`, by
uv where it is installed (which gets missing versions of Python), else by the interpreters
on PATH. It says which passed, failed, or could not be reached, and why; what the tests say is left
beside. An environment is removed once they have run: torch's build for GPUs takes some 7 GB.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TESTS = (
    "tests/test_files.py",
    "tests/test_ledger.py",
    "tests/test_reading.py",
    "tests/test_checkpoints.py",
    "tests/test_config.py",
    "tests/test_experiment.py",
    "tests/datasets/test_dataset_conformance.py",
    "tests/strategies/test_conformance.py",
)


def oldest_torch() -> str:
    """Return the lower bound of torch in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    stated = re.search(r'"torch>=([\d.]+)', text)
    assert stated is not None
    return stated[1]


def lower_bounds() -> list[str]:
    """Return `name==version` of the lower bound of each dependency, those of tests included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    stated = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [entry.replace(">=", "==") for entry in stated if ">=" in entry and "torch" not in entry]


def run(command: list[str], **options: object) -> str:
    """Run a command; return "" where it succeeded, else the last line of what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode == 0:
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1][:160] if lines else f"ended with code {done.returncode}"


def make(version: str, wanted: list[str], folder: Path) -> str:
    """Make an environment with Upslope and versions; return "" or why that is not possible."""
    wanted = [*wanted, "-e", f"{ROOT}[dev]"]
    if uv := shutil.which("uv"):
        return run([uv, "venv", "--clear", "--python", version, str(folder)]) or run(
            [uv, "pip", "install", "--python", str(folder / "bin/python"), *wanted]
        )
    python = shutil.which(f"python{version}")
    if python is None or run([python, "--version"]):
        return f"neither uv nor a python{version} that starts is on PATH"
    return run([python, "-m", "venv", "--clear", str(folder)]) or run(
        [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", *wanted]
    )


def main() -> int:
    """Try every pair; the exit code is 1 where tests failed in one that could be made."""
    failed = False
    oldest = f"torch=={oldest_torch()}.*"
    for version in PYTHONS:
        cases = {oldest: [oldest], "torch newest": ["torch"]}
        if version == PYTHONS[0]:
            cases["lower bounds"] = [oldest, *lower_bounds()]
        for words, wanted in cases.items():
            name = f"Python {version}, {words}"
            folder = ROOT / ".venv/compatibility" / version
            if reason := make(version, wanted, folder):
                print(f"{name}: not reached: {reason}", flush=True)
            else:
                python = str(folder / "bin/python")
                print_version = [python, "-c", "import torch; print(torch.__version__)"]
                got = subprocess.run(print_version, capture_output=True, text=True, check=False)
                # Old versions of dependencies are deprecated by newer ones of theirs.
                tests = [python, "-m", "pytest", "-q", "-W", "default::DeprecationWarning", *TESTS]
                done = subprocess.run(tests, capture_output=True, text=True, check=False, cwd=ROOT)
                log = folder.parent / f"{name}.log".replace(" ", "-")
                log.write_text(done.stdout + done.stderr, encoding="utf-8")
                failed |= bool(done.returncode)
                word = f"failed, see {log}" if done.returncode else "passed"
                print(f"{name} (torch {got.stdout.strip()}): {word}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
