"""Run the command line: `python -m upslope`."""

from __future__ import annotations

from upslope.cli import main

main()
