"""Where a run happened: versions, hardware, commit."""

from __future__ import annotations

import os
import platform
import subprocess
import warnings
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from upslope.distributed.engine import current
from upslope.distributed.launch import count_processes
from upslope.ledger import Event, Ledger

_PACKAGES = ("upslope", "torch", "numpy", "scipy", "scikit-learn")


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, machine, device and, where the package is a checkout, its commit."""
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": count_processes(),
        "engine": getattr(current(), "description", None),
        "device": str(device),
        "device_name": _device_name(device),
        "commit": _commit(),
    }


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say what differs between two environments and may change the last bits of results."""
    pairs = {
        "threads": (before.get("threads"), now["threads"]),
        "processes": (before.get("processes", 1), now["processes"]),
        "engine": (before.get("engine"), now["engine"]),
        "device": (before.get("device"), now["device"]),
        "device name": (before.get("device_name"), now["device_name"]),
        **{
            package: (before.get("packages", {}).get(package), now["packages"][package])
            for package in ("upslope", "torch", "numpy")
        },
    }
    return [f"{name} {a} -> {b}" for name, (a, b) in pairs.items() if a != b]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):  # Linux alone tells the processor's name there
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def _commit() -> str | None:
    """The commit of this source, "+" after it where files were changed; None if not a checkout.

    It is asked for once: what a process runs is the source as it was when it was imported.
    """
    here = Path(__file__).resolve()
    # An installed package may lie inside somebody else's checkout, which does not track it.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = _git(here.parent, "rev-parse", "HEAD")
    status = _git(here.parents[1], "status", "--porcelain", "--untracked-files=no", ".")
    return commit and commit + ("+" if status else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        git_run = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return git_run.stdout.strip()


def last_environment(ledger: Ledger) -> dict[str, Any]:
    """Return where a run was gone on with last, as far as its ledger says."""
    sittings = ledger.state.sittings
    return dict(sittings[-1] if sittings else ledger.meta["environment"])


def note_sitting(ledger: Ledger, path: Path, here: Mapping[str, Any]) -> None:
    """Record and tell where a run is gone on with elsewhere than before.

    path: its directory. here: what `environment` gives now.
    """
    if not (differences := differing(last_environment(ledger), here)):
        return
    ledger.record(Event("sitting", ledger.state.cycle, {"environment": dict(here)}))
    warnings.warn(
        f"The run in {path} is gone on with under other circumstances than before: "
        f"{'; '.join(differences)}. From here on, the last bits of its figures, and now and then a "
        "selection, may differ from those of a run without the change.",
        stacklevel=3,
    )
