"""The task as training sees it, where that differs from what scores and evaluation see."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from upslope.errors import ConfigError
from upslope.tasks.base import Smooths, Task
from upslope.training.settings import TrainingSettings


def trained_task(task: Task, settings: TrainingSettings) -> Task:
    """Return the task with the label smoothing of training.

    Raises:
        ConfigError: the task has no label smoothing, or has its own.
    """
    if not settings.label_smoothing:
        return task
    if not isinstance(task, Smooths):
        raise ConfigError(
            f"Expected training.label_smoothing to be 0, as the task {type(task).__name__} has "
            f"none, but got {settings.label_smoothing}. Set it to 0."
        )
    if task_smoothing := task.label_smoothing:
        raise ConfigError(
            "Expected one of task.label_smoothing, for training and scores, and "
            f"training.label_smoothing, for training alone, but got {task_smoothing} and "
            f"{settings.label_smoothing}. Set one of them to 0."
        )
    instance: Any = task
    smoothing_task: Task = replace(instance, label_smoothing=settings.label_smoothing)
    return smoothing_task
