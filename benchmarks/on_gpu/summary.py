"""The summary that a measurement on a GPU leaves, as JSON."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

Record = dict[str, Any]


def write(options: argparse.Namespace, summary: Record) -> None:
    """Write the summary of one measurement, with the machine."""
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    machine = {"device": name, "torch": torch.__version__, "dry": options.dry}
    path = options.out / f"{options.what}.json"
    path.write_text(json.dumps({**machine, **summary}, indent=1), encoding="utf-8")
    print(f"wrote {path}", flush=True)
