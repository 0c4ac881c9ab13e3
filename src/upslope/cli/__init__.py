"""The command line: each command reads its options, calls the library, shows what comes back.

Nothing heavy is imported before a command runs: `--help` must answer at once.
"""

from __future__ import annotations

import sys

from upslope.cli.app import app


def main() -> None:
    """Run the command `upslope`; the entry point of the package."""
    try:
        app(prog_name="upslope")
    except KeyboardInterrupt:  # before a command has begun; commands answer for themselves
        sys.exit(130)


__all__ = ["app", "main"]
