"""Upslope: deep active learning by gradient norm."""

__version__ = "0.1.0"
