"""The protocol of an artefact beside the paper's, line by line; `write` calls it."""

from __future__ import annotations

from upslope.config import plan
from upslope.reproduction.paper import Protocol
from upslope.reproduction.studies.opened import OpenedStudy, describe_data

Line = tuple[str, str, str]
"""What is compared, its value here, its value in the paper."""


def compare_protocols(
    studies: list[OpenedStudy], theirs: Protocol, variant: str, seeds: int | None = None
) -> list[Line]:
    """Return the lines of the two protocols; where our studies differ, a line has them all.

    studies: those that the artefact reads. theirs: the paper's protocol. variant: its name.
    seeds: how many seeds the artefact takes; None for all that the studies have.
    """
    ours = [_describe(study, seeds) for study in studies]
    lines: list[Line] = [
        (what, "; ".join(dict.fromkeys(one[what] for one in ours)), paper_words)
        for what, paper_words in (
            ("data", theirs.data),
            ("network", theirs.network),
            ("training", theirs.training),
            ("labels", theirs.budgets),
            ("candidates", theirs.candidates),
            ("seeds", theirs.seeds),
        )
    ]
    norm, start = _norm_and_start(studies[0])
    lines += [
        ("norm", norm, "of the whole gradient (text); sum over tensors (code)"),
        ("each cycle starts from", start, "re-trained (text); the cycle before (code)"),
        ("reading", variant, "text and code differ"),
        ("checkpoint", "the last epoch's", "the last epoch's in what is reported"),
    ]
    return lines


def _describe(study: OpenedStudy, seeds: int | None) -> dict[str, str]:
    config = study.config
    sizes, training = plan(config, study.setup), config.training
    shape = "x".join(map(str, sizes.input_shape))
    in_all = len(config.seeds)
    seed_count = in_all if seeds is None else min(seeds, in_all)
    first, last = (round(100 * n / sizes.pool) for n in (sizes.budgets[0], sizes.budgets[-1]))
    rate = f"{training.optimizer} {training.lr:g}, {training.schedule}"
    candidates = sizes.candidates or (0,)
    low, high = min(candidates), max(candidates)
    return {
        "data": f"{describe_data(config, study.study.substitute)}, {shape}, "
        f"{sizes.pool:,} to choose from, "
        f"{sizes.test:,} to test on, {sizes.classes} classes",
        "network": f"{config.model.name}, {sizes.parameters:,} parameters",
        "training": f"{training.epochs} epochs, batch {training.batch_size}, {rate}",
        "labels": f"{first}% to {last}% in {len(sizes.budgets)} steps",
        "candidates": (f"{low:,}" if low == high else f"{low:,} to {high:,}")
        + f" ({config.experiment.candidates})",
        "seeds": str(in_all) if seed_count == in_all else f"the first {seed_count} of {in_all}",
    }


def _norm_and_start(study: OpenedStudy) -> tuple[str, str]:
    norms = {
        str(choice.options.get("norm", "global"))
        for choice in study.config.strategies
        if choice.name.endswith("-gradnorm")
    }
    words = {"global": "of the whole gradient", "tensor-sum": "sum over tensors of their norms"}
    starts = {"warm": "the weights of the cycle before", "scratch": "the initial weights"}
    norm = ", ".join(words[n] for n in sorted(norms)) or "none"
    return norm, starts[study.settings.retrain]
