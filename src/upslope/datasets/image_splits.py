"""Entries of a folder of images by split: as its files state, or drawn; and what is odd in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from upslope.datasets.layout import Entry
from upslope.datasets.left_out import name_some
from upslope.datasets.subset import draw
from upslope.errors import DataError


def divide(
    entries: list[Entry], test_share: float, folder: Path, *, may_lack_test: bool
) -> dict[str, list[Entry]]:
    """Return entries by split: as stated, or with a stratified share of the labelled to test on.

    may_lack_test: the test set may be empty.

    Raises:
        DataError: nothing to learn from, nothing to test on, or no class in common of what is to
            learn from and what is to test on.
    """
    labelled = [entry for entry in entries if entry[1]]
    if labelled and not any(split for _, _, split in entries):
        names = np.unique([label for _, label, _ in labelled], return_inverse=True)[1]
        ids = [id_ for id_, _, _ in labelled]
        positions, _ = draw(ids, names.astype(np.int64), round(test_share * len(ids)), "test")
        test = {ids[i] for i in positions}
        entries = [(i, label, "test" if i in test else "train") for i, label, _ in entries]
    parts: dict[str, list[Entry]] = {"train": [], "test": [], "validation": []}
    for entry in entries:
        parts[entry[2] or "train"].append(entry)
    _need_classes_in_common(parts, folder)
    if not parts["test"]:  # a lone validation split is what the test is made on
        parts["test"], parts["validation"] = parts["validation"], []
    for part in ("train", "test"):
        if not parts[part] and not (part == "test" and may_lack_test):
            raise DataError(
                f"Expected images to {'learn from' if part == 'train' else 'test on'} in {folder} "
                f"but got none. Add a folder or a split `{part}`, or images to draw it from."
            )
    return parts


def _need_classes_in_common(parts: Mapping[str, list[Entry]], folder: Path) -> None:
    """Refuse splits without a class in common: train/train/cat beside test/test/cat."""
    pool = {label for _, label, _ in parts["train"]}
    if not pool or "" in pool:  # a class may be among those not labelled yet
        return
    for part in ("test", "validation"):
        others = {label for _, label, _ in parts[part]} - {""}
        if others and not others & pool:
            raise DataError(
                f"Expected classes in {folder} that are both to learn from and in the {part} set "
                f"but the pool has {name_some(sorted(pool))} and the {part} set "
                f"{name_some(sorted(others))}. Name the classes alike; where these are folders "
                "around the classes, move the classes up: train/<class>/ and test/<class>/."
            )


def class_notes(splits: Mapping[str, list[Entry]]) -> tuple[str, ...]:
    """Return sentences on classes without a sample to learn from, and on a lone val/."""
    train_labels = {label for _, label, _ in splits["train"]}
    notes = []
    for part in ("test", "validation"):
        unseen = Counter(
            label for _, label, _ in splits[part] if label and label not in train_labels
        )
        if unseen and train_labels - {""}:
            count_words = ", ".join(
                f"{name!r} ({count:,})" for name, count in sorted(unseen.items())
            )
            notes.append(
                f"The {part} set holds classes without a labelled image in the pool: {count_words}."
            )
    if splits["test"] and all(split == "validation" for _, _, split in splits["test"]):
        notes.append("The images of the validation split are the test set: no split test is there.")
    return tuple(notes)
