"""Every table and figure of the paper, measured again; `upslope reproduce` calls it.

    request = ask("table1", scale="smoke", out="runs/smoke")
    report = reproduce(request)       # runs what is missing, writes runs/smoke/table1/

`scales/` declares on which data and networks, `studies/` runs them once for all artefacts,
`metrics/` takes numbers from finished runs, `artefacts/` makes tables and panels of them, with the
paper's numbers (`paper`, the only ones typed in) beside, and `output/` and `write` write them.
"""

from __future__ import annotations

from upslope.reproduction.artefacts import ARTEFACTS
from upslope.reproduction.run import Report, Request, ask, reproduce
from upslope.reproduction.scales import SCALES, VARIANTS

__all__ = ["ARTEFACTS", "SCALES", "VARIANTS", "Report", "Request", "ask", "reproduce"]
