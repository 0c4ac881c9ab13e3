"""Data structures of the engine: batches, layouts of samples, weights, per-sample gradients.

Nothing here runs a model. Each folder imports only from those after it: `uses`, `weights`,
`gradients`, `layouts`, `vmap`, `program`, `state`, and the files beside them.
"""
