"""Pool, test set and validation set of one data set, and how to make them of what users hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from upslope.datasets.base import Dataset
from upslope.datasets.similar_names import similar_id_notes, similar_name_notes

if TYPE_CHECKING:
    from upslope.datasets.array_form import Layout
    from upslope.datasets.map_style import Key
    from upslope.datasets.table import Missing
    from upslope.datasets.target_values import TargetKind
    from upslope.datasets.targets import Kind
    from upslope.images import Mode
    from upslope.progress import Observer


@dataclass(frozen=True)
class Splits:
    """The pool that is learnt from, the test set that nothing but evaluation reads, and perhaps a
    validation set, the only one that may choose a checkpoint. The test set is empty where nothing
    is labelled yet.

    notes: plain sentences, each about what a reader left out, converted or left unlabelled: what,
    how many, and how to decide otherwise. They are shown to people and recorded nowhere.

    `print(splits)` shows the classes with counts and the notes, as the plan of a run does.
    """

    pool: Dataset
    test: Dataset
    validation: Dataset | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Add notes on classes whose names differ in capitals, spaces or marks alone, and on ids
        that look alike."""
        classes = getattr(self.pool, "classes", ())  # `checks` tells what has none
        parts = (self.pool, self.test, self.validation)
        ids_of_parts = (getattr(part, "ids", ()) for part in parts)
        ids = chain.from_iterable(ids for ids in ids_of_parts if isinstance(ids, Sequence))
        similar = (*similar_name_notes(classes), *similar_id_notes(ids))
        more = [note for note in similar if note not in self.notes]
        object.__setattr__(self, "notes", (*self.notes, *more))

    def __str__(self) -> str:
        """Return one line per split, with its classes and counts, and one per note."""
        from upslope.datasets.overview import overview  # which imports the kinds of data sets

        return "\n".join(f"{title}: {text}" for title, text in overview(self))

    # The readers import this module: each is imported when it is called.

    @staticmethod
    def from_arrays(
        inputs: Any,
        targets: Any = None,
        test_inputs: Any = None,
        test_targets: Any = None,
        *,
        ids: Sequence[object] | None = None,
        test_ids: Sequence[object] | None = None,
        classes: Sequence[str] | None = None,
        kind: TargetKind = "class",
        layout: Layout = "auto",
        test_share: float | None = None,
    ) -> Splits:
        """Return splits of NumPy arrays, tensors or sequences of numbers.

        inputs, test_inputs: (n, ...) uint8 in 0..255, or floats taken as they are; whole numbers of
        other types are refused. A memory map is read where it lies. targets, test_targets: by
        `kind`, "class": (n,) whole numbers from 0, or names; "labels": (n, L) of 0 and 1;
        "numbers": (n,) or (n, k); "masks": (n, h, w) classes, 255 where a pixel counts nowhere. A
        sample that nobody has labelled has -1, None or, of numbers, NaN; the pool may do without
        targets. ids: one text or whole number per sample; pool-00000 and so on where not given.
        classes: the names of classes, labels or numbers in order; needed without targets. layout:
        "channels-first" or "channels-last", where shapes do not tell; tensors of torch have their
        channels in front unless it says otherwise. test_share: of the labelled samples to test
        on, drawn by ids, where no test set is given; without either, the test set is empty.

        test_ids: as ids, of the test set.

        Raises:
            ConfigError: arguments that do not go together.
            DataError: lengths that differ, NaN or infinity, targets of another kind.
        """
        from upslope.datasets.in_memory import from_arrays

        return from_arrays(
            inputs, targets, test_inputs, test_targets, ids=ids, test_ids=test_ids,
            classes=classes, kind=kind, layout=layout, test_share=test_share,
        )  # fmt: skip

    @staticmethod
    def from_torch(
        pool: Any,
        test: Any = None,
        *,
        validation: Any = None,
        input: Key = None,
        target: Key = None,
        id: Key = None,
        ids: Sequence[object] | None = None,
        classes: Sequence[str] | None = None,
        kind: TargetKind = "class",
        layout: Layout = "auto",
        mode: Mode | None = None,
        size: int | None = None,
        white: int | None = None,
        memory: float = 4.0,
        test_share: float | None = None,
        progress: Observer | None = None,
    ) -> Splits:
        """Return splits of map-style data sets: of torch, of torchvision, or any with `len(data)`
        and `data[i]`.

        An item is an input, a tuple (input, target) or a mapping; an input is an image of Pillow,
        an array or a tensor. Items must be the same at each reading, so give the data set without
        random transforms: `augmentation` of the task varies images in training.

        input, target, id: keys of a mapping or places in a tuple, where the usual ones (image,
        label, ...) do not tell. ids, classes, kind, test_share: as for `from_arrays`; classes are
        those of `pool.classes` where it has some. layout: where arrays have their channels. mode,
        size, white: that images of Pillow are brought to; "RGB" or "L", size x size, the white of
        16 bits. memory: GiB of inputs to hold; where all need more, they are read when asked for.

        progress: is told of items read.

        Raises:
            ConfigError: a data set without length or places; keys that are not there.
            DataError: items of several shapes, or that differ from reading to reading; targets of
                another kind.
        """
        from upslope.datasets.torch_splits import from_torch
        from upslope.progress import no_progress

        return from_torch(
            pool, test, validation=validation, input=input, target=target, id=id, ids=ids,
            classes=classes, kind=kind, layout=layout, mode=mode, size=size, white=white,
            memory=memory, test_share=test_share, progress=progress or no_progress,
        )  # fmt: skip

    @staticmethod
    def from_table(
        frame: Any,
        test: Any = None,
        *,
        target: str | Sequence[str] | None = None,
        kind: Kind = "class",
        classes: Sequence[str] | None = None,
        text: str | None = None,
        tokenizer: str = "words",
        length: int = 128,
        columns: Sequence[str] | None = None,
        categorical: Sequence[str] = (),
        missing: Missing = "error",
        missing_labels: Sequence[str] | None = None,
        id: str | None = None,
        test_share: float = 0.2,
    ) -> Splits:
        """Return splits of a table of pandas, polars or Arrow, or of a mapping of columns.

        The options are those of the data sets `table` and, where `text` names a column of texts,
        `text`. target: the column of classes (label, class or target, if not given), or several
        of 0 and 1 (kind="labels") or numbers (kind="numbers"). An empty cell there is a sample
        that nobody has labelled; without any label, `classes` names them. columns: inputs; all
        others if not given. categorical: columns of numbers that are categories. tokenizer,
        length: of texts. id: the column of ids; `id`, or the index of pandas, or else the number
        of the row. test: the test set's table; else a column `split` says, or `test_share` of the
        labelled rows is set apart by ids.

        frame: the table. missing: words for an empty input. missing_labels: words for an empty
        label.

        Raises:
            ConfigError: no table, or columns that are not there.
            DataError: empty inputs, ids that are not distinct, columns that are neither numbers
                nor categories.
        """
        from upslope.datasets.frames import from_table

        return from_table(
            frame, test, target=target, kind=kind, classes=classes, text=text,
            tokenizer=tokenizer, length=length, columns=columns, categorical=categorical,
            missing=missing, missing_labels=missing_labels, id=id, test_share=test_share,
        )  # fmt: skip

    @staticmethod
    def from_hugging_face(
        data: Any,
        *,
        train: str = "train",
        test: str | None = None,
        image: str | None = None,
        label: str | None = None,
        missing_labels: Sequence[str] | None = None,
        text: str | None = None,
        tokenizer: str = "words",
        length: int = 128,
        mode: Mode | None = None,
        size: int | None = None,
        memory: float = 4.0,
        white: int | None = None,
        test_share: float | None = None,
        progress: Observer | None = None,
    ) -> Splits:
        """Return splits of a `DatasetDict` of Hugging Face, or of one `Dataset`.

        train, test: names of the splits; test, or validation, where not given. image, label: their
        columns, where types and names do not tell. missing_labels: words for an empty label. text:
        the column of texts; then the samples are token ids, by `tokenizer`, of `length` at most.
        mode, size, white, memory: of images, as for `from_torch`. test_share: of the samples to
        test on, evenly spaced, where there is no test set.

        data: the data set. progress: is told of samples read.

        Raises:
            ConfigError: columns that are not there; a stream.
            DataError: splits that are not there; images that cannot be read, or of several sizes
                without `size`; labels of another kind.
        """
        from upslope.datasets.hugging_face_splits import from_hugging_face
        from upslope.progress import no_progress

        return from_hugging_face(
            data, train=train, test=test, image=image, label=label,
            missing_labels=missing_labels, text=text, tokenizer=tokenizer, length=length,
            mode=mode, size=size, memory=memory, white=white,
            test_share=test_share, progress=progress or no_progress,
        )  # fmt: skip
