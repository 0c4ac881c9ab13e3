"""From a checkpoint, or from names, to what scores and predicts.

Called by the commands `score`, `select` and `predict`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import yaml
from torch import device as Device
from torch import nn

from upslope import datasets, models, strategies, tasks
from upslope.batches import resolve_device
from upslope.checkpoints import load_weights, read_weights, trained_classes
from upslope.config.assemble import data_options
from upslope.config.inputs import states_none, statistics
from upslope.config.recorded import ENCODED_BY_POOL, Source
from upslope.config.schema import names_or_mappings
from upslope.config.yaml_text import read_yaml
from upslope.datasets.base import Dataset, place_of
from upslope.datasets.readable import first_readable, input_type
from upslope.errors import ConfigError, DataError, ModelError, UpslopeError, warn_user
from upslope.files import json_digest
from upslope.frozen import (
    freeze_dataset,
    same_summary,
    take_backbone,
)
from upslope.memory import raise_memory_error
from upslope.network_record import (
    describe_network,
    list_differences,
    network_differences,
    outputs_record,
    tells_outputs,
)
from upslope.pool import Strategy
from upslope.progress import Observer, no_progress
from upslope.scoring import Scorer
from upslope.strategies.base import TopStrategy
from upslope.tasks.base import Task


@dataclass(frozen=True)
class TrainedModel:
    """What `scoring.score_to_file` takes: `model` is in eval mode on `device`.

    classes: their names, where they are known.

    pool: the samples to score. task: as in training.
    """

    pool: Dataset
    task: Task
    model: nn.Module
    device: Device
    classes: tuple[str, ...] = ()


def load_trained_model(
    source: Source, progress: Observer = no_progress, pool: Dataset | None = None
) -> TrainedModel:
    """Return what there is to score, and the network with the weights of the checkpoint.

    pool: the samples, where they are open already.

    Classes and statistics are the run's where a run trained it. Else the number of classes is that
    of the data set; of images without classes, the checkpoint's; and images are normalised by
    the statistics of what is opened.

    source: where the checkpoint is, and its configuration. progress: is told of samples read.

    Raises:
        ConfigError, DataError: as for `assemble`; inputs of another shape than the run's; rows of a
            table or texts that are not the run's, whose inputs would be scaled otherwise.
        ModelError: a checkpoint that cannot be read, or of another network.
    """
    config = source.config
    weights = read_weights(source.checkpoint)
    name, options = config.data.name, data_options(config)
    if pool is None:
        pool = datasets.load_to_score(name, config.root, progress=progress, **options)
    _check_like_the_run(source, pool)
    mean, std = source.statistics or statistics(
        config,
        # An older run has not recorded them: those of its pool, which it trained on.
        datasets.load(name, config.root, progress=progress, **options).pool
        if source.run and not source.elsewhere
        else pool,
    )
    # Images of a folder do not tell the classes that a network knows: then the names given count.
    class_list = source.classes or pool.classes or tuple(config.data.options.get("classes") or ())
    _warn_of_measured_statistics(source, pool, mean, std)
    if config.freeze:
        return _trained_head(source, pool, class_list, (mean, std), weights, progress)

    def build(classes: int) -> nn.Module:
        return models.build(
            config.model.name,
            num_classes=classes,
            input_shape=tuple(pool.input_shape),
            **config.model.options,
        )

    def task_of(classes: int) -> Task:
        return tasks.build(
            config.task.name,
            num_classes=classes,
            mean=mean,
            std=std,
            classes=class_list,
            **config.task.options,
        )

    classes = len(class_list) or trained_classes(build, weights)
    model, device = build(classes or 2), resolve_device(config.device)
    load_weights(model, source.checkpoint)
    count = classes or 2
    _warn_of_other_settings(
        source, model, lambda: build(count), lambda: task_of(count).prepare(first_readable(pool))
    )
    model.eval()
    if classes is None:  # a network of one size whatever it is asked for: its outputs tell
        classes = _outputs(model, task_of(2), pool)
    return TrainedModel(pool, task_of(classes), model.to(device), device, tuple(class_list))


def _warn_of_measured_statistics(
    source: Source, pool: Dataset, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Warn where images are normalised by their own statistics, since nothing says by which the
    network was trained."""
    if source.run is not None or not states_none(source.config, pool):
        return
    words = [f"{key} [{', '.join(f'{v:.3f}' for v in values)}]" for key, values in
             (("mean", mean), ("std", std))]  # fmt: skip
    warn_user(
        f"Nothing says by which mean and std images were normalised when {source.checkpoint} was "
        f"trained, so that those of {place_of(pool)} are taken, {' and '.join(words)}: if they "
        "were others, results are wrong. State those of the training with -s 'data.mean=[...]' -s "
        "'data.std=[...]', one number per channel of images in 0..1.",
        UserWarning,
    )


def _warn_of_other_settings(
    source: Source,
    model: nn.Module,
    build: Callable[[], nn.Module],
    sample: Callable[[], torch.Tensor],
) -> None:
    """Warn where a network takes the weights of a run and yet computes otherwise than in it.

    build: makes another such network, as untrained as that of the run was when it was recorded.
    sample: gives a prepared batch.
    """
    before = source.run.info.get("network") if source.run else None
    if not before:
        return
    outputs = outputs_record(build, sample) if tells_outputs(before) else {}
    if differences := network_differences(before, {**describe_network(model), **outputs}):
        warnings.warn(
            f"The weights of {source.checkpoint} were trained in another network: "
            f"{list_differences(differences)}. What is computed now may differ from what the run "
            "did.",
            stacklevel=2,
        )


def _trained_head(
    source: Source,
    pool: Dataset,
    class_list: Sequence[str],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
    weights: Mapping[str, torch.Tensor],
    progress: Observer,
) -> TrainedModel:
    """Return the features of `pool` by the frozen network, and the head of the checkpoint.

    Raises:
        ModelError: a network that is not the one whose features the head was trained on.
    """
    config = source.config
    bias = weights.get("bias", weights.get("weight"))
    classes = len(class_list) or (len(bias) if bias is not None else 2)
    task = tasks.build(
        config.task.name,
        num_classes=classes,
        mean=statistics[0],
        std=statistics[1],
        classes=class_list,
        **config.task.options,
    )
    network = partial(
        models.build,
        config.model.name,
        num_classes=classes,
        input_shape=tuple(pool.input_shape),
        **config.model.options,
    )
    device = resolve_device(config.device)
    backbone = take_backbone(network, task, device)
    model = backbone.make_head(classes)()
    load_weights(model, source.checkpoint)
    digest = source.run.config["samples"].get("backbone_sha256") if source.run else None
    probe = source.run.info.get("backbone_probe") if source.run else None
    features = None
    if digest in (None, backbone.digest):
        features = freeze_dataset(pool, backbone, device, observer=progress)
    if features is None or (probe and not same_summary(probe, features.probe)):
        raise ModelError(
            f"Expected the network {config.model.name!r} to compute what it computed for the run "
            f"in {source.run.path if source.run else ''}, as the head was trained on its features, "
            "but its weights or its code are others. Bring the former ones back."
        )
    return TrainedModel(features, task, model.to(device).eval(), device, tuple(class_list))


def _check_like_the_run(source: Source, pool: Dataset) -> None:
    """Raise DataError where the network would see other inputs than those it was trained on."""
    if source.run is None:
        return
    info = source.run.info
    shape = tuple(info.get("source_shape", info.get("input_shape", pool.input_shape)))
    if shape != tuple(pool.input_shape):
        raise DataError(
            f"Expected inputs of shape {shape}, which the run was trained on, but those of "
            f"{place_of(pool)} have {tuple(pool.input_shape)}. Give images of that size, or set "
            "data.size."
        )
    _check_type(source, pool)
    ids = source.run.config.get("samples", {}).get("pool_ids_sha256")
    if source.config.data.name in ENCODED_BY_POOL and ids not in (
        None,
        json_digest(list(pool.ids)),
    ):
        raise DataError(
            f"Expected the samples that the run in {source.run.path} was trained with, as the "
            f"inputs of {source.config.data.name!r} are scaled and encoded by all rows of the "
            f"pool, but {place_of(pool)} holds others: the network would read their numbers "
            "wrongly. Give the run's own file; rows to predict belong into it from the start, "
            "without a label."
        )


_TYPES = {
    "uint8": "whole numbers of 0..255 (uint8), which are standardised",
    "float": "floats, which are taken as they are",
}
_REMEDIES = {
    "uint8": "Give them as uint8: of floats in 0..1, 255 times these, rounded.",
    "float": "Give floats, made of the images as for the run.",
}


def _check_type(source: Source, pool: Dataset) -> None:
    """Raise DataError for numbers of another kind than those that the network was trained on."""
    before, now = source.input_type, input_type(pool)
    is_built_in = source.config.root is None  # the same whoever asks: `digits`
    if before is None and now == "uint8" and not is_built_in:
        warnings.warn(
            f"The run in {source.run.path if source.run else ''} is of an earlier version, which "
            "did not record whether its inputs were uint8 or floats. Those of "
            f"{place_of(pool)} are uint8, of which 0..255 become 0..1: results are wrong if it was "
            "trained on floats of another scale.",
            stacklevel=2,
        )
    elif None not in (before, now) and before != now:
        raise DataError(
            f"Expected {_TYPES.get(before or '', before)}, as the run was trained on, but those of "
            f"{place_of(pool)} are {_TYPES.get(now or '', now)}: the network would see other "
            f"numbers. {_REMEDIES.get(before or '', 'Give inputs of the same type.')}"
        )


def _outputs(model: nn.Module, task: Task, pool: Dataset) -> int:
    """How many logits the model has for a sample, or for a position of it."""
    sample = task.prepare(first_readable(pool))
    try:
        with torch.no_grad():
            return task.logits(model(sample)).shape[1]
    except UpslopeError:
        raise
    except Exception as error:  # whatever a network of somebody else's may raise
        raise_memory_error(error)
        raise ModelError(
            f"Expected {type(model).__name__} to return logits, (n, classes, ...), for a batch of "
            f"shape {tuple(sample.shape)} but it raised {type(error).__name__}: {error}"
        ) from error


def find_strategy(text: str) -> Strategy:
    """Return the strategy that a text names: a name, or a mapping of `name` and options in YAML.

    Raises:
        ConfigError: text that is neither, an unknown strategy or option.
    """
    value = read_yaml(text, f"the name of a strategy, {text!r},")
    options = dict(value) if isinstance(value, dict) else {"name": value}
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(
            "Expected the name of a strategy, or {name: u-herding, temperature: 2}, but got "
            f"{text!r}."
        )
    return strategies.build(name, **options)


def find_strategies(text: str) -> list[Strategy]:
    """Return the strategies that a text names: names or mappings in YAML, with commas between.

    Raises:
        ConfigError: as `find_strategy`.
    """
    entries = names_or_mappings(text)
    return [
        find_strategy(entry if isinstance(entry, str) else yaml.safe_dump(entry))
        for entry in entries
        if not isinstance(entry, str) or entry.strip()
    ]


def scorers(names: str) -> dict[str, Scorer]:
    """The strategies that have one score a sample, by names with commas between.

    Raises:
        ConfigError: an unknown strategy, or one that chooses without such a score.
    """
    score_functions: dict[str, Scorer] = {}
    for name in (name.strip() for name in names.split(",")):
        strategy = strategies.build(name)
        if not isinstance(strategy, TopStrategy):
            able = [n for n, kind in strategies.REGISTRY.items() if issubclass(kind, TopStrategy)]
            raise ConfigError(
                f"Expected strategies that score each sample by itself, {', '.join(able)}, but "
                f"got {name!r}, which chooses a batch as a whole."
            )
        score_functions[name] = strategy
    return score_functions
