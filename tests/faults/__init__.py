"""Faults made on purpose: `python -m tests.faults --help`."""
