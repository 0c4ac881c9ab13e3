"""Networks that stay as they are below their head: features computed once, heads trained on them.

    frozen = freeze(splits, task, network)        # computes what is not on the disk yet
    Experiment("runs/mine", splits=frozen.splits, model=frozen.head, task=task, ...)

The head is the linear layer that makes the logits. Signals, gradient norms and sketches then come
from the head, whose inputs the features are.
"""

from upslope.frozen.backbone import Backbone, take_backbone
from upslope.frozen.dataset import FeatureDataset
from upslope.frozen.freeze import (
    Frozen,
    freeze,
    freeze_dataset,
    freeze_splits,
    measure_features,
)
from upslope.frozen.probe import same_summary

__all__ = [
    "Backbone",
    "FeatureDataset",
    "Frozen",
    "freeze",
    "freeze_dataset",
    "freeze_splits",
    "measure_features",
    "same_summary",
    "take_backbone",
]
