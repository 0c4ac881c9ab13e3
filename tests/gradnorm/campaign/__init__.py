"""Architectures that the engine is held against: every answer exact, or refused by name."""
