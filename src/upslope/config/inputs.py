"""The normalisation and the size of inputs that a network's trained weights expect."""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial

import torch

from upslope import datasets, models
from upslope.config.schema import Config
from upslope.datasets.base import Dataset, HasStatistics, place_of
from upslope.datasets.readable import first_readable, input_type
from upslope.datasets.statistics import check_stated
from upslope.datasets.subset import origin
from upslope.errors import ConfigError
from upslope.frozen.backbone import build_trained


def with_size(config: Config) -> Config:
    """Return the configuration with `data.size` as the weights want, where none was given.

    Only of a reader that has the option and no size of its own.
    """
    form = models.image_form(config.model.name, config.model.options)
    if form is None or form.size is None or "size" in config.data.options:
        return config
    size = inspect.signature(datasets.loader(config.data.name)).parameters.get("size")
    if size is None or size.default is not None:
        return config
    options = {**config.data.options, "size": form.size}
    return replace(config, data=replace(config.data, options=options))


def statistics(config: Config, pool: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the (mean, std) by which images are normalised: the weights', those that `data.mean`
    and `data.std` state, or the data set's.

    Empty for inputs that are no images of whole numbers: these are taken as they are.

    Raises:
        ConfigError: `data.mean` or `data.std` say otherwise than the weights want; `model.freeze`
            with random weights, or where nothing states what trained ones want; statistics stated
            for floats.
        DataError: no sample can be read.
    """
    form = models.image_form(config.model.name, config.model.options)
    options_pair = _stated_statistics(config, pool)
    if not is_image(pool):
        return options_pair or datasets.statistics(pool)
    if form is None:
        if options_pair is not None:
            return options_pair
        if config.freeze and states_none(config, pool):
            build_trained(  # told first: no statistics make random weights trained ones
                partial(
                    models.build,
                    config.model.name,
                    num_classes=len(pool.classes) or 2,
                    input_shape=tuple(pool.input_shape),
                    **config.model.options,
                )
            )
            raise ConfigError(
                "model.freeze: expected the statistics by which images were normalised when the "
                f"weights of the model {config.model.name!r} were trained, as those of the pool "
                "change with it, but there are none. Set data.mean and data.std, where the data "
                "set has them, or the attributes `mean` and `std` of the function."
            )
        return datasets.statistics(pool)
    mean, std = form.statistics(pool.input_shape[0])
    for key, value in (("mean", mean), ("std", std)):
        option = config.data.options.get(key)
        if option is not None and tuple(option) != value:
            raise ConfigError(
                f"data.{key}: expected {list(value)}, with which the weights of the model "
                f"{config.model.name!r} were trained, but got {list(option)}. Leave it out."
            )
    return mean, std


def states_none(config: Config, pool: Dataset) -> bool:
    """Return whether nothing states the statistics of images, so that they are measured: neither
    the configuration, nor the network's weights, nor the data set."""
    if not is_image(pool) or models.image_form(config.model.name, config.model.options):
        return False
    source = origin(pool, 0)[0]
    has_own = isinstance(source, HasStatistics) and bool(source.mean)
    return not has_own and _stated_statistics(config, pool) is None


def _stated_statistics(
    config: Config, pool: Dataset
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the statistics in `data.mean` and `data.std`, which not every data set holds; None
    without.

    A shard of a pool does not, and those of the first shard are not the network's.
    """
    options = config.data.options
    if options.get("mean") is None and options.get("std") is None:
        return None
    if input_type(pool) == "float":
        raise ConfigError(
            "data.mean: expected images of whole numbers, 0..255 (uint8), which are standardised "
            f"by it, but the inputs of {place_of(pool)} are floats, which are taken as they are. "
            "Give uint8 (of floats in 0..1, 255 times these, rounded), or leave data.mean and "
            "data.std out where the network was trained on such floats."
        )
    if len(pool.input_shape) < 2:  # of flat lists the shape is asked for
        return None
    return check_stated(options.get("mean"), options.get("std"), pool.input_shape[0])


def is_image(pool: Dataset) -> bool:
    """Tell whether inputs are images in 0..255, which are normalised."""
    return len(pool.input_shape) == 3 and first_readable(pool, 1).dtype == torch.uint8
