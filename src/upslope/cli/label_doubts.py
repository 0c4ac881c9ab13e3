"""`upslope label relabel`, `disagreements` and `close-control`: what is asked once more."""

from __future__ import annotations

from typing import Annotated

import typer

from upslope.cli.console import telling_errors
from upslope.cli.label_options import Project, say


def relabel(
    project: Project,
    count: Annotated[int, typer.Option(min=1, help="Answers to ask again at most.")] = 20,
) -> None:
    """Ask answers again that the model doubts: the page shows them first.

    [bold]Examples[/bold]

      upslope label relabel birds --count 10
    """
    with telling_errors():
        from upslope.labelling.doubt import doubtful_labels
        from upslope.labelling.predictions import learner_and_features
        from upslope.labelling.project import Project as LabelProject

        with LabelProject(project) as label_project:
            doubts = doubtful_labels(
                learner_and_features(project, label_project.settings)[0], label_project.state
            )
            reasons = dict(list(doubts.items())[:count])
            label_project.ask_again(reasons)
        for id_, why in reasons.items():
            say(f"{id_}: {why}")
        say(f"{len(reasons):,} answers are asked again: upslope label serve {project}")


def disagreements(
    project: Project,
    ask: Annotated[bool, typer.Option("--ask", help="Ask them again on the page.")] = False,
) -> None:
    """Show the samples on which people disagree, with who said what.

    [bold]Examples[/bold]

      upslope label disagreements birds --ask
    """
    with telling_errors():
        from upslope.labelling.people import disagreements as disagreements_of
        from upslope.labelling.project import Project as LabelProject
        from upslope.labelling.project import read_project

        settings, state = read_project(project)
        disputes = disagreements_of(state, settings.classes)
        for one in disputes:
            say(f"{one.id}: {one.words}")
        say(f"{len(disputes):,} samples")
        if ask and disputes:
            with LabelProject(project) as label_project:
                label_project.ask_again({one.id: one.words for one in disputes})
            say(f"asked again: upslope label serve {project}")


def close_control(project: Project) -> None:
    """Train on the control answers too, from here on; nothing measures the model any more.

    [bold]Examples[/bold]

      upslope label close-control birds
    """
    with telling_errors():
        from upslope.labelling.project import Project as LabelProject

        with LabelProject(project) as label_project:
            label_project.close_control()
        say("The control slice is closed: its answers are trained on.")
