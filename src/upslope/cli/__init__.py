"""The command line: each command reads its options, calls the library, shows what comes back.

Nothing heavy is imported before a command runs: `--help` must answer at once.
"""

from __future__ import annotations

import atexit
import signal
import sys

from upslope.cli.app import app


def main() -> None:
    """Run the command `upslope`; the entry point of the package."""
    # Registered first, it is called last: libraries take seconds to be torn down, where Ctrl-C once
    # more would end a command that has ended already by the signal, without its exit code.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    try:
        app(prog_name="upslope")
    except KeyboardInterrupt:  # before a command has begun; commands answer for themselves
        sys.exit(130)


__all__ = ["app", "main"]
