"""The record of what was asked, labelled and trained: SQLite, and state as a fold over events."""

from upslope.ledger.events import Event, Label, State, fold
from upslope.ledger.records import Change, CycleRecord, RunResult
from upslope.ledger.store import Differences, Ledger, read_run, refuse

__all__ = [
    "Change",
    "CycleRecord",
    "Differences",
    "Event",
    "Label",
    "Ledger",
    "RunResult",
    "State",
    "fold",
    "read_run",
    "refuse",
]
