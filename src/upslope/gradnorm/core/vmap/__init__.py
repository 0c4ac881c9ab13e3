"""Operators under `torch.vmap`, which are run outside of it."""
