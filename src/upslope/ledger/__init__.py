"""The record of what was asked, labelled and trained: SQLite, and state as a fold over events."""

from upslope.ledger.records import CycleRecord, RunResult

__all__ = ["CycleRecord", "RunResult"]
