"""Reports: a table, pictures and one HTML page from run directories.

summary = summarise(collect(["runs/digits"]))
write(summary, "runs/digits/report")
"""

from __future__ import annotations

from upslope.report.collect import collect, collect_sets, study_of
from upslope.report.look import Look, read_look
from upslope.report.savings import Costs
from upslope.report.study import Run, Study
from upslope.report.summary import Comparison, Row, Summary, summarise, summarise_sets
from upslope.report.write import Files, write, write_sets

__all__ = [
    "Comparison",
    "Costs",
    "Files",
    "Look",
    "Row",
    "Run",
    "Study",
    "Summary",
    "collect",
    "collect_sets",
    "read_look",
    "study_of",
    "summarise",
    "summarise_sets",
    "write",
    "write_sets",
]
