"""Gradients by ordinary autograd, and proofs that the engine says the same, or that it cannot.

Called by `trace`, with the batches that are to be proven, and where samples go one by one.
"""
