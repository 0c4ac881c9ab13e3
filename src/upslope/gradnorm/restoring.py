"""A model is left as it was found, whatever happens on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def as_found(model: nn.Module) -> Iterator[None]:
    """Record with autograd on; leave the model's buffers as they were, whatever happens."""
    buffers = [
        (module, name, buffer, buffer._version, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, version, before in buffers:
                module._buffers[name] = buffer
                # Normalisation in training mode writes past the counter of versions.
                silent = module.training and not torch.equal(buffer, before)
                if silent or buffer._version != version:
                    buffer.copy_(before)
