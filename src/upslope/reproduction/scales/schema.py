"""The schema of a scale: its studies, and which of them each artefact reads.

`read_scale` fills these classes from the YAML files of this folder; every other part of the room
reads them. The text of the paper and the code of its authors differ, and a `Variant` is one side:

             norm                             retraining      candidates
    text     of the whole gradient            from scratch    the whole pool
    code     sum over tensors of their norms  warm start      10 x the budget

The text's appendix (A.8) has 10 x the budget as well, and its tables were made by the code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upslope.config import Config, load
from upslope.errors import ConfigError

EXPECTED, ENTROPY, MC_DROPOUT = "expected-gradnorm", "entropy-gradnorm", "mc-dropout"
GRADIENT_NORM_STRATEGIES = (EXPECTED, ENTROPY)
"""The two strategies that the paper proposes, by the loss of Eq. 6 and of Eq. 7."""


@dataclass(frozen=True)
class Variant:
    """One side of the differences between the paper's text and its authors' code.

    name: what `--variant` calls it.
    norm: the gradient norm by which the paper's strategies select, `global` or `tensor-sum`.
    retrain: what the training of each cycle starts from, `scratch` or `warm`.
    candidates: how many unlabelled samples are scored in each cycle, `all` or `10x` the budget.
    """

    name: str
    norm: str
    retrain: str
    candidates: str

    @property
    def other_retrain(self) -> str:
        """Return the value of `retrain` in the other variant."""
        return "warm" if self.retrain == "scratch" else "scratch"


VARIANTS: Mapping[str, Variant] = {
    "text": Variant("text", "global", "scratch", "all"),
    "code": Variant("code", "tensor-sum", "warm", "10x"),
}
"""Name -> the variant."""


@dataclass(frozen=True)
class InfluenceOptions:
    """How much of the data Table 2 and Figure 3 take, and how exactly they solve for influence.

    Where there are more samples than a limit, that many are drawn at random; None is no limit.

    damping: added to the diagonal of H; above 0.
    train: most labelled samples that H is the mean over.
    test: most test samples that the test gradient is summed over.
    candidates: most unlabelled samples of Figure 3.
    tolerance: relative residual at which conjugate gradients stop.
    iterations: most steps of conjugate gradients.
    seeds: how many seeds of the study are measured, the first ones.
    """

    damping: float = 0.01
    train: int | None = None
    test: int | None = None
    candidates: int | None = None
    tolerance: float = 1e-3
    iterations: int = 200
    seeds: int = 3


@dataclass(frozen=True)
class Study:
    """The declaration of one comparison that several artefacts read.

    name: its name in the scale, and the name of its folder.
    document: what a configuration file for `upslope compare` would hold.
    substitute: a key of `studies.substitute_data.SUBSTITUTES`, by which the data set is changed
        into one in the place of the paper's; None for the data set itself.
    """

    name: str
    document: Mapping[str, Any]
    substitute: str | None = None

    def config(
        self, sets: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
    ) -> Config:
        """Return the checked configuration, with assignments on top.

        sets, overrides: as `upslope.config.load` takes them.

        Raises:
            ConfigError: a value that is not allowed, an assignment that is none, or strategies
                without those that artefacts read.
        """
        config = load(self.document, sets=sets, overrides=overrides)
        labels = [choice.label for choice in config.strategies]
        labels_of_study = (
            [choice.label for choice in load(self.document).strategies] if sets else []
        )
        if missing := [label for label in labels_of_study if label not in labels]:
            raise ConfigError(
                f"strategies: expected {', '.join(missing)} among those of a study, whose figures "
                f"artefacts read, but got {', '.join(labels)}. Leave the strategies as they are, "
                "or add to them."
            )
        return config


@dataclass(frozen=True)
class Scale:
    """The studies of a scale by name, and the names of those that the artefacts read.

    name, variant: what this scale was read for.
    studies: name -> its declaration.
    figure_1, figure_2, figure_4: a group of studies for each panel of the figure; Table 9 reads
        those of Figure 1.
    class_wise: the study of Tables 7 and 8.
    deeper: name and options of the network of Table 6.
    influence: options of Table 2 and Figure 3.
    main: the study of Tables 1 to 6 and of Figure 3.
    dropout: `main` for mc-dropout alone, whose network has dropout.
    other_start: some strategies of `main`, retrained the other way, for the confound.
    """

    name: str
    variant: Variant
    studies: Mapping[str, Study]
    figure_1: tuple[tuple[str, ...], ...]
    figure_2: tuple[tuple[str, ...], ...]
    figure_4: tuple[tuple[str, ...], ...]
    class_wise: str
    deeper: Mapping[str, Any]
    influence: InfluenceOptions
    main: str = "main"
    dropout: str = "main-dropout"
    other_start: str = "main-other-start"
