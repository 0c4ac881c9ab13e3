"""Lazy forms of per-sample gradients, and the ways to their norms."""
