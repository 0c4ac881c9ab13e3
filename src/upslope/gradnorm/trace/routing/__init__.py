"""Rows that the data move: read from their indices, and decided on again."""
