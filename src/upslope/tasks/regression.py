"""Regression: squared error, one or several numbers per sample.

Where is there a gradient norm without a label? Not in Eq. 6 and 7: under a predictive normal
distribution of constant variance the expected squared error is that variance and the entropy a
function of it, so that the gradient of either is zero for every sample. What is defined is the
expected change of the model (Cai, Zhang and Zhou, ICDM 2013): with members f_k of a committee, each
trained on a bootstrap of the labels, standing for what the label might be,

    (1 / K) sum_k || grad 1/2 |f(x) - f_k(x)|^2 ||,  which for one number per sample is
    || grad f(x) || (1 / K) sum_k |f(x) - f_k(x)|

the norm of the gradient times the mean absolute pseudo-residual: the strategy `emcm`. Whatever
reads a posterior over classes is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn

import torch
from pydantic import Field
from torch import Tensor, nn

from upslope.errors import ConfigError, DataError
from upslope.tasks.answers import numbers, numbers_answer
from upslope.tasks.common import CommonTask
from upslope.tasks.regression_metrics import RegressionMetrics
from upslope.tasks.target_checks import refuse_wrong
from upslope.tasks.target_scale import scale_advice

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Regression(CommonTask):
    """`num_classes` numbers per sample, by half the squared error.

    Outputs are (n, num_classes), or an object that carries them as `.logits`; targets (n,
    num_classes) floats. The network learns (target - centre) / scale, one of each a number: what
    is known of the quantity before any label is. Figures are in the units of the targets.
    """

    centre: Annotated[
        Numbers, Field(description="of each target, about its mean; zeros where not given")
    ] = ()
    scale: Annotated[
        Numbers, Field(description="of each target, about its deviation; ones where not given")
    ] = ()

    primary = "r2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes < 1:
            raise ConfigError(f"Expected at least 1 number per sample but got {self.num_classes}.")
        for name, values in (("centre", self.centre), ("scale", self.scale)):
            if len(values) not in (0, self.num_classes):
                raise ConfigError(
                    f"Expected `{name}` to hold {self.num_classes} numbers, one per target, but "
                    f"got {list(values)}."
                )
        if any(not s > 0 for s in self.scale):
            raise ConfigError(f"Expected every `scale` above 0 but got {list(self.scale)}.")

    def logits(self, outputs: Any) -> NoReturn:  # noqa: ARG002
        """Raise ConfigError: there is no posterior over classes."""
        raise ConfigError(
            "Expected a task with classes but regression has none: posteriors, and the entropies, "
            "margins and gradient norms taken from them, are not defined. Take emcm, the expected "
            "change of the model, or a strategy that needs no posterior: random, core-set, ll4al."
        )

    def losses(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return 1/2 |output - (target - centre) / scale|^2 of each sample, (n,), summed over
        numbers.

        Raises:
            DataError: targets that are not (n, num_classes) floats.
        """
        values = self._read_numbers(outputs)
        self._check_form(targets, tuple(values.shape))
        return (values - self._standard(targets.to(values))).square().sum(dim=1) / 2

    def check_targets(self, targets: Tensor, id_of: Callable[[int], str]) -> None:
        """Raise DataError unless targets are finite, (n, num_classes). id_of: of each sample."""
        self._check_form(targets, (len(targets), self.num_classes))
        refuse_wrong(
            targets,
            ~targets.isfinite(),
            id_of,
            "finite numbers",
            "Repair the targets, or leave these samples out.",
        )

    def advice(self, targets: Tensor, figures: Mapping[str, float] | None = None) -> str:
        """Return what to state as `centre` and `scale` where targets are far off; '' elsewhere.

        targets: (n, num_classes), of labelled samples. figures: of a network on these; targets that
        it has learnt are left out.
        """
        return scale_advice(targets, *self._affine(targets), self.class_names, figures)

    def predictions(self, outputs: Any) -> Tensor:
        """Return (n, num_classes): what is predicted, in the units of the targets."""
        values = self._read_numbers(outputs)
        centre, scale = self._affine(values)
        return values * scale + centre

    def per_sample(self, values: Tensor, answers: Tensor) -> Tensor:  # noqa: ARG002
        """Return (n,) for (n, ...), the mean over the numbers, where there are several."""
        return values.flatten(start_dim=1).mean(dim=1) if values.ndim > 1 else values

    def label(self, answer: Any, classes: Sequence[str]) -> list[float]:
        """Return the numbers that an annotator gives, one for each name. Raises DataError."""
        return numbers(answer, classes)

    def read_answer(self, text: str, classes: Sequence[str]) -> list[float]:
        """Return the answer that a cell of text is, as `label` takes it."""
        return numbers_answer(text, classes)

    def metrics(self) -> RegressionMetrics:
        """Return a fresh accumulator of R^2, the root of the mean squared error and the mean
        absolute.
        """
        return RegressionMetrics(self, self.class_names)

    def check(self, model: nn.Module, sample: Tensor) -> None:
        """Run a prepared batch of one or more, (n, ...), through the model in eval mode.

        The mode of every module is as before afterwards.

        Raises:
            ModelError: the model fails on it, or its output is not finite (n, num_classes).
        """
        self.check_outputs(
            model, sample, (), "numbers", "one row per sample and one column per target"
        )

    def _read_numbers(self, outputs: Any) -> Tensor:
        """Return the outputs in single precision at least.

        Under autocast they have eight bits or eleven, which targets of three digits lose.
        """
        values = self.read_outputs(outputs)
        return values.to(torch.promote_types(values.dtype, torch.float32))

    def _check_form(self, targets: Tensor, shape: tuple[int, ...]) -> None:
        if tuple(targets.shape) != shape or not targets.is_floating_point():
            raise DataError(
                f"Expected targets of shape {shape}, floats, for the task regression but got "
                f"{targets.dtype} of shape {tuple(targets.shape)}. Give a data set whose targets "
                "are numbers (`table` with `kind: numbers`)."
            )

    def _standard(self, targets: Tensor) -> Tensor:
        centre, scale = self._affine(targets)
        return (targets - centre) / scale

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        centre = self.centre or (0.0,) * self.num_classes
        scale = self.scale or (1.0,) * self.num_classes
        return like.new_tensor(centre), like.new_tensor(scale)
