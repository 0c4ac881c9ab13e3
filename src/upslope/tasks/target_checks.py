"""Checks of targets: what is none of a task's is refused by name, before torch fails on it.

`Task.losses` checks form alone, since looking at numbers waits for the device; the numbers are
looked at where targets are read, on the CPU (`Task.check_targets`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from upslope.errors import DataError


def as_classes(targets: Tensor, shape: Sequence[int | str], task: str) -> Tensor:
    """Return classes as int64, whatever integers they are.

    shape: that they must have, with a letter for any number. task: its name, for the message.

    Raises:
        DataError: another shape, or a type that is none of whole numbers.
    """
    is_integer = not (targets.is_floating_point() or targets.is_complex())
    if tuple(targets.shape) != tuple(shape) or not is_integer or str(targets.dtype) == "torch.bool":
        raise DataError(
            f"Expected targets of shape {tuple(shape)}, whole numbers, for the task {task} but got "
            f"{targets.dtype} of shape {tuple(targets.shape)}. Give a data set whose targets are "
            "classes (of floats that are whole, `.long()`), or take the task that they are for: "
            "regression for numbers, multi-label for label sets, segmentation for masks, "
            "classification for one class per sample."
        )
    return targets.long()


def refuse_wrong(
    targets: Tensor, is_wrong: Tensor, id_of: Callable[[int], str], what_is_wanted: str, remedy: str
) -> None:
    """Raise DataError with the first target that is wrong, if there is one.

    targets: (n, ...). is_wrong: booleans of that shape. id_of: returns the id of the k-th sample.
    what_is_wanted, remedy: for the message.
    """
    samples = is_wrong.flatten(1).any(dim=1) if is_wrong.ndim > 1 else is_wrong
    if not bool(samples.any()):
        return
    first = int(samples.nonzero()[0])
    value = targets[first][is_wrong[first]].flatten()[0].item()
    raise DataError(
        f"Expected {what_is_wanted} in the target of {id_of(first)!r} but got {value} "
        f"({int(samples.sum())} of {len(samples)} samples looked at have such). {remedy}"
    )


def check_classes(
    targets: Tensor, count: int, id_of: Callable[[int], str], ignore_index: int | None = None
) -> None:
    """Refuse whole numbers that are no class.

    targets: (n, ...). count: of the classes. id_of: returns the id of the k-th sample.
    ignore_index: a number that is no class and may come all the same; None where there is none.

    Raises:
        DataError: a number below 0 or above the last class.
    """
    is_wrong = (targets < 0) | (targets >= count)
    but = ""
    if ignore_index is not None:
        is_wrong &= targets != ignore_index
        but = f", or {ignore_index} where nothing counts,"
    refuse_wrong(
        targets,
        is_wrong,
        id_of,
        f"a class between 0 and {count - 1}{but}",
        "Make the task with as many classes as there are, or repair the targets.",
    )
