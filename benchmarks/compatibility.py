"""The short tests with each version of Python at hand, and the oldest and newest torch allowed.

`python benchmarks/compatibility.py` makes an environment for each pair in `.venv/compatibility`, by
uv where it is installed (which gets missing versions of Python), else by the interpreters
on PATH. It says which pairs passed, failed, or could not be reached, and why.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TESTS = ("tests/test_files.py", "tests/test_ledger.py", "tests/strategies/test_conformance.py")


def oldest_torch() -> str:
    """Return the lower bound of torch in pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    stated = re.search(r'"torch>=([\d.]+)', text)
    assert stated is not None
    return stated[1]


def run(command: list[str], **options: object) -> str:
    """Run a command; return "" where it succeeded, else the last line of what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode == 0:
        return ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[-1][:160] if lines else f"ended with code {done.returncode}"


def make(version: str, torch: str, folder: Path) -> str:
    """Make an environment with these versions; return "" or why that is not possible."""
    wanted = [f"torch{torch}", "-e", f"{ROOT}[dev]"]
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
    for version in PYTHONS:
        for torch in (f"=={oldest_torch()}.*", ""):
            name = f"Python {version}, torch {torch or 'newest'}"
            folder = ROOT / ".venv/compatibility" / f"{version}-{'oldest' if torch else 'newest'}"
            reason = make(version, torch, folder)
            if reason:
                print(f"{name}: not reached: {reason}", flush=True)
                continue
            problem = run([str(folder / "bin/python"), "-m", "pytest", "-q", *TESTS], cwd=ROOT)
            failed |= bool(problem)
            print(f"{name}: {f'failed: {problem}' if problem else 'passed'}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
