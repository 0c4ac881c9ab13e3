"""The record of what was asked, labelled and trained: SQLite, and state as a fold over events."""

from upslope.ledger.events import Event, State, fold
from upslope.ledger.records import CycleRecord, RunResult
from upslope.ledger.store import Ledger, read_run

__all__ = ["CycleRecord", "Event", "Ledger", "RunResult", "State", "fold", "read_run"]
