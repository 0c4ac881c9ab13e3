"""Whether a model that draws random numbers gives samples other outputs where there are fewer.

Its passes with others replaced (`passes`) have as many samples as the batch, and so do not tell
what is divided by their number. Here samples do go alone: every draw gives the same number in every
place (`draws`), in the batch and in the pass of fewer samples. These are not the numbers that the
batch has met; the operators are the same.

Called by `proof` and `per_sample_loop`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from upslope.errors import GradientNormError
from upslope.gradnorm.proofs.batch_run import BatchRun
from upslope.gradnorm.proofs.draws import HIGH, LOW, ConstantDraws, Quantiles
from upslope.gradnorm.proofs.mixing import agree_in_double, changed_samples, model_mixes
from upslope.gradnorm.proofs.passes import run_fewer


class _CannotTell(Exception):  # noqa: N818
    """The model does not run with constant draws, or draws what cannot be made constant."""


@torch.no_grad()
def refuse_count(run: BatchRun, groups: Sequence[Tensor], unused_places: Collection[int]) -> None:
    """Refuse a model whose outputs for some samples change when they go without the others.

    Where what is drawn depends on the numbers of the samples, no other pass tells whether they mix.

    groups: the samples that go together. unused_places: as in `mixing.compare_outputs`.

    Raises:
        GradientNormError: they change; or nothing can be told, and no other pass tells.
    """
    try:
        # Where samples may depend on others, entries that a dropout hides are looked at as well.
        patterns = [(HIGH, LOW), (LOW, HIGH)] if run.may_mix_samples else [(HIGH, LOW)]
        if all(_find_changed(run, groups, unused_places, pattern) is None for pattern in patterns):
            return
        # Noise with the samples last is no mixing: one number in all places tells.
        for quantile in (HIGH, LOW):
            changed_rows = _find_changed(run, groups, unused_places, (quantile, quantile))
            if changed_rows is not None:
                raise model_mixes(run, changed_rows)
    except _CannotTell as reason:  # other passes tell, unless draws follow the data
        if run.draws_follow_data:
            raise undecided_error(str(reason)) from reason


def _find_changed(
    run: BatchRun, groups: Sequence[Tensor], unused_places: Collection[int], quantiles: Quantiles
) -> Tensor | None:
    """Return samples that change, of the first of the groups that has any; None if none has."""
    draws = ConstantDraws(quantiles)
    try:
        with run.other_draws():
            whole = run.run_plain(run.batch, watch=draws)
    except torch.OutOfMemoryError:  # says nothing of the model
        raise
    except Exception as error:  # what it computes of constant numbers has no inverse, say
        raise _CannotTell("it fails where random numbers are constant") from error
    for rows in groups:
        other = ConstantDraws(quantiles)
        company, outputs_alone = _run_fewer(run, rows, other)
        changed_rows = changed_samples(
            run, whole, outputs_alone, company, unused_places, may_be_shorter=True
        )
        if changed_rows is None or agree_in_double(run, company, quantiles):
            continue
        if not (draws.is_complete and other.is_complete and draws.others == other.others):
            raise _CannotTell("it draws by other ways than torch's operators")
        return changed_rows
    return None


def _run_fewer(run: BatchRun, rows: Tensor, draws: ConstantDraws) -> tuple[Tensor, Any]:
    try:
        with run.other_draws():
            return run_fewer(run, rows, draws)
    except GradientNormError as error:  # constant draws may be the cause, or the model itself
        run_fewer(run, rows)  # fails with any numbers: that is the model's own fault
        raise _CannotTell("it fails where random numbers are constant") from error


def undecided_error(reason: str) -> GradientNormError:
    """Return the error for a model of which cannot be told whether it mixes samples."""
    return GradientNormError(
        "Expected a model that draws as many random numbers for a sample whatever the others are "
        "but which numbers it meets depends on the numbers of other samples (a dropout "
        f"behind a choice of tokens, say), and {reason}: whether samples are mixed cannot be told. "
        "Score in `model.eval()`, or draw for all samples before any are chosen."
    )
