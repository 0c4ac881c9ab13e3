"""Training a task model: plain PyTorch, resumable at any batch, deterministic on the CPU."""

from upslope.training.settings import TrainingSettings

__all__ = ["TrainingSettings"]
