"""Reports: a table, pictures and one HTML page from run directories.

summary = summarise(collect(["runs/digits"]))
write(summary, "runs/digits/report")
"""

from __future__ import annotations

from upslope.report.collect import collect, study_of
from upslope.report.look import Look, read_look
from upslope.report.study import Run, Study
from upslope.report.summary import Comparison, Row, Summary, summarise
from upslope.report.write import Files, write

__all__ = [
    "Comparison",
    "Files",
    "Look",
    "Row",
    "Run",
    "Study",
    "Summary",
    "collect",
    "read_look",
    "study_of",
    "summarise",
    "write",
]
