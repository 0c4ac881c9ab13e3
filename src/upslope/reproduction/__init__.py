"""Every table and figure of the paper, measured again: `upslope reproduce ARTEFACT --scale ...`.

    asked = ask("table1", scale="smoke", out="runs/smoke")
    report = reproduce(asked)          # runs what is missing, writes runs/smoke/table1/

`scales/` says on which data and networks, `study` runs them once for all artefacts, `measures` and
`theory` take figures from finished runs, one file a family of artefacts reads them, `write` puts
them beside the paper's numbers (`paper`, the only ones typed in).
"""

from __future__ import annotations

from upslope.reproduction.artefacts import ARTEFACTS
from upslope.reproduction.run import Asked, Report, ask, reproduce
from upslope.reproduction.scales import READINGS, SCALES

__all__ = ["ARTEFACTS", "READINGS", "SCALES", "Asked", "Report", "ask", "reproduce"]
