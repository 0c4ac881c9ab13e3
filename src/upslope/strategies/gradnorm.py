"""Gradient norm: the samples whose loss gradient is largest (Wang et al., AAAI 2022).

Leaving a sample out of the training set raises the upper bound of the test loss by no more than
its gradient norm allows (Eq. 5), so the largest are labelled first. Without a label the loss is
taken in expectation over the model's posterior p:

    entropy-gradnorm   || grad -sum_i p_i log p_i ||         Eq. 7
    expected-gradnorm  || grad sum_i p_i L_i ||              Eq. 6
    egl                sum_i p_i || grad L_i ||              Settles, Craven and Ray 2007
    egl-rms            sqrt(sum_i p_i || grad L_i ||^2)      its root mean square

With cross-entropy, L_i = -log p_i, the first two are the same number. docs/gradient-norm-scores.md
shows when they differ, where they are zero, and which to take.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from upslope.errors import ConfigError
from upslope.options import LATER, Norm, Parameters, Temperature
from upslope.pool import Need
from upslope.strategies.base import TopStrategy
from upslope.strategies.posteriors import gradient_need

PAPER = "Wang et al., AAAI 2022"
EGL_PAPER = "Settles, Craven and Ray 2007"


@dataclass(frozen=True)
class GradientNormStrategy(TopStrategy):
    """What the four share: which norm, by which parameters."""

    best_for: ClassVar[str] = "medium and large budgets"

    norm: Norm = "global"
    parameters: Parameters = None
    temperature: Temperature = field(default=1.0, metadata=LATER)

    def norms_need(self, signal: str, **options: Any) -> Need:
        """The need of a signal with the options that all four share."""
        return gradient_need(
            signal, self.temperature, norm=self.norm, parameters=self.parameters, **options
        )


@dataclass(frozen=True)
class EntropyGradNorm(GradientNormStrategy):
    """The gradient norm of the entropy of the posterior."""

    name: ClassVar[str] = "entropy-gradnorm"
    reference: ClassVar[str] = f"{PAPER}, Eq. 7"
    signal_cost: ClassVar[str] = "one forward and backward per candidate"

    @property
    def needs(self) -> tuple[Need, ...]:
        """The gradient norm of the entropy."""
        return (self.norms_need("gradnorm", loss="entropy"),)


@dataclass(frozen=True)
class ExpectedGradNorm(GradientNormStrategy):
    """The gradient norm of the loss expected under the posterior."""

    name: ClassVar[str] = "expected-gradnorm"
    reference: ClassVar[str] = f"{PAPER}, Eq. 6"
    signal_cost: ClassVar[str] = "one forward and backward per candidate"

    criterion: Annotated[
        Literal["cross-entropy", "label-smoothing", "focal", "hinge"],
        Field(description="the loss expected; cross-entropy makes this entropy-gradnorm"),
    ] = "cross-entropy"
    posterior: Annotated[
        Literal["graph", "detached"],
        Field(description="whether the posterior is differentiated with the loss, or held fixed"),
    ] = "graph"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion == "cross-entropy" and self.posterior == "detached":
            raise ConfigError(
                "expected-gradnorm: with criterion=cross-entropy and posterior=detached the "
                "gradient is zero for every sample, p - p. Take posterior=graph (which is "
                "entropy-gradnorm), another criterion, or the strategy egl."
            )

    @property
    def needs(self) -> tuple[Need, ...]:
        """The gradient norm of the expected loss."""
        return (
            self.norms_need(
                "gradnorm",
                loss="expected",
                criterion=self.criterion,
                posterior=self.posterior,
            ),
        )


@dataclass(frozen=True)
class EGL(GradientNormStrategy):
    """The expected gradient length."""

    name: ClassVar[str] = "egl"
    reference: ClassVar[str] = EGL_PAPER
    signal_cost: ClassVar[str] = "one forward and, at most, C backwards per candidate"
    kind: ClassVar[str] = "mean"

    share: Annotated[
        float, Field(gt=0, le=1, description="share of the posterior whose classes are summed")
    ] = 1.0

    @property
    def needs(self) -> tuple[Need, ...]:
        """The expected gradient length, of this kind."""
        return (self.norms_need("egl", kind=self.kind, share=self.share),)


@dataclass(frozen=True)
class EGLRms(EGL):
    """The root mean square of the gradient lengths."""

    name: ClassVar[str] = "egl-rms"
    reference: ClassVar[str] = f"{EGL_PAPER}, squared; the trace of the Fisher information"
    kind: ClassVar[str] = "rms"
