"""The command line: each command reads its options, calls the library, shows what comes back.

Nothing heavy is imported before a command runs: `--help` must answer at once.
"""

from __future__ import annotations

from upslope.cli.app import app


def main() -> None:
    """Run the command `upslope`; the entry point of the package."""
    app(prog_name="upslope")


__all__ = ["app", "main"]
