"""The registry of artefacts, which `run` goes through.

To add one: a function from a `StudyRunner` to a `Result`, in a file of its own, and one line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from upslope.reproduction.artefacts.confound import confound
from upslope.reproduction.artefacts.figure_3 import figure_3
from upslope.reproduction.artefacts.figures_1_2_4 import figure_1, figure_2, figure_4
from upslope.reproduction.artefacts.table_1 import table_1
from upslope.reproduction.artefacts.table_2 import table_2
from upslope.reproduction.artefacts.table_3 import table_3
from upslope.reproduction.artefacts.table_6 import table_6
from upslope.reproduction.artefacts.table_9 import table_9
from upslope.reproduction.artefacts.tables_4_5 import table_4, table_5
from upslope.reproduction.artefacts.tables_7_8 import table_7, table_8
from upslope.reproduction.output.results import Result
from upslope.reproduction.scales import Scale
from upslope.reproduction.studies.runner import StudyRunner


@dataclass(frozen=True)
class Artefact:
    """A table or a figure of the paper.

    title: its heading. make: measures it, and first runs the studies that are not finished.
    studies: from a scale to the names of those studies, for the plan. cycles: the fewest of a
    study, as one number says nothing of how numbers change.
    """

    title: str
    make: Callable[[StudyRunner], Result]
    studies: Callable[[Scale], tuple[str, ...]]
    cycles: int = 1


def _main(scale: Scale) -> tuple[str, ...]:
    return (scale.main,)


def _with_dropout(scale: Scale) -> tuple[str, ...]:
    return (scale.main, scale.dropout)


def _figure_1(scale: Scale) -> tuple[str, ...]:
    return tuple(name for group in scale.figure_1 for name in group)


def _figure_2(scale: Scale) -> tuple[str, ...]:
    return tuple(name for group in scale.figure_2 for name in group)


def _figure_4(scale: Scale) -> tuple[str, ...]:
    return tuple(name for group in scale.figure_4 for name in group)


def _class_wise(scale: Scale) -> tuple[str, ...]:
    return (scale.class_wise,)


def _both_starts(scale: Scale) -> tuple[str, ...]:
    return (scale.main, scale.other_start)


ARTEFACTS: Mapping[str, Artefact] = {
    "table1": Artefact("Selected samples of large gradient norm", table_1, _with_dropout),
    "table2": Artefact("Eq. 5 against Eq. 3", table_2, _main),
    "table3": Artefact("Training less test accuracy", table_3, _with_dropout, cycles=2),
    "table4": Artefact("Norms that fall, expected-gradnorm", table_4, _main, cycles=2),
    "table5": Artefact("Norms that fall, entropy-gradnorm", table_5, _main, cycles=2),
    "table6": Artefact("A deeper network on the labels selected", table_6, _with_dropout),
    "table7": Artefact("Accuracy by class, expected-gradnorm", table_7, _class_wise),
    "table8": Artefact("Accuracy by class, entropy-gradnorm", table_8, _class_wise),
    "table9": Artefact("Time", table_9, _figure_1),
    "figure1": Artefact("Classification", figure_1, _figure_1, cycles=2),
    "figure2": Artefact("Many classes, and segmentation", figure_2, _figure_2, cycles=2),
    "figure3": Artefact("The target and its bounds", figure_3, _main, cycles=2),
    "figure4": Artefact("Subtomograms", figure_4, _figure_4, cycles=2),
    "confound": Artefact("40% of the labels and all, at equal steps", confound, _both_starts),
}
"""Name -> the artefact; `all` makes them in this order."""
