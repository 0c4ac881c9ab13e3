"""Strategies x seeds under one protocol, resumable, with references trained on every label."""

from upslope.comparison.run import FULL_DATA, ComparisonResult, compare, read_comparison

__all__ = ["FULL_DATA", "ComparisonResult", "compare", "read_comparison"]
