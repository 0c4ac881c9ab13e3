"""What an artefact was measured under, and what the paper measured it under."""

from __future__ import annotations

from upslope.config import plan
from upslope.reproduction.paper import Protocol
from upslope.reproduction.studies.opened import OpenedStudy, data_of

Line = tuple[str, str, str]
"""(what, here, the paper's)."""


def differences(
    studies: list[OpenedStudy], theirs: Protocol, variant: str, seeds: int | None = None
) -> list[Line]:
    """Line by line; where several studies differ, each of them.

    seeds: of how many the artefact is, where it does not take all that the studies have.
    """
    ours = [_described(opened, seeds) for opened in studies]
    lines: list[Line] = [
        (what, "; ".join(dict.fromkeys(one[what] for one in ours)), printed)
        for what, printed in (
            ("data", theirs.data),
            ("network", theirs.network),
            ("training", theirs.training),
            ("labels", theirs.budgets),
            ("candidates", theirs.candidates),
            ("seeds", theirs.seeds),
        )
    ]
    norm, start = _reading(studies[0])
    lines += [
        ("norm", norm, "of the whole gradient (text); sum over tensors (code)"),
        ("each cycle starts from", start, "re-trained (text); the cycle before (code)"),
        ("variant", variant, "text and code differ"),
        ("checkpoint", "the last epoch's", "the last epoch's in what is reported"),
    ]
    return lines


def _described(opened: OpenedStudy, seeds: int | None) -> dict[str, str]:
    config = opened.config
    sizes, training = plan(config, opened.job), config.training
    shape = "x".join(map(str, sizes.input_shape))
    there = len(config.seeds)
    taken = there if seeds is None else min(seeds, there)
    first, last = (round(100 * n / sizes.pool) for n in (sizes.budgets[0], sizes.budgets[-1]))
    rate = f"{training.optimizer} {training.lr:g}, {training.schedule}"
    candidates = sizes.candidates or (0,)
    low, high = min(candidates), max(candidates)
    return {
        "data": f"{data_of(config, opened.study.substitute)}, {shape}, "
        f"{sizes.pool:,} to choose from, "
        f"{sizes.test:,} to test on, {sizes.classes} classes",
        "network": f"{config.model.name}, {sizes.parameters:,} parameters",
        "training": f"{training.epochs} epochs, batch {training.batch_size}, {rate}",
        "labels": f"{first}% to {last}% in {len(sizes.budgets)} steps",
        "candidates": (f"{low:,}" if low == high else f"{low:,} to {high:,}")
        + f" ({config.experiment.candidates})",
        "seeds": str(there) if taken == there else f"the first {taken} of {there}",
    }


def _reading(opened: OpenedStudy) -> tuple[str, str]:
    norms = {
        str(choice.options.get("norm", "global"))
        for choice in opened.config.strategies
        if choice.name.endswith("-gradnorm")
    }
    words = {"global": "of the whole gradient", "tensor-sum": "sum over tensors of their norms"}
    starts = {"warm": "the weights of the cycle before", "scratch": "the initial weights"}
    norm = ", ".join(words[n] for n in sorted(norms)) or "none"
    return norm, starts[opened.settings.retrain]
