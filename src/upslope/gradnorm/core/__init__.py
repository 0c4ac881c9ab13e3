"""Data structures of the engine: batches, layouts of samples, weights, per-sample gradients.

Nothing here runs a model.
"""
