"""Runs a model under interception, batch by batch, and falls back where it must.

Called by the public functions above.
"""
