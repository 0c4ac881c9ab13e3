"""Title, order and colours of a report, kept from one writing to the next.

A strategy keeps its colour when the report is made again: with another reference, with strategies
that came later, or from folders that are listed in another order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from upslope.files import from_json

FILE = "results.json"
GREY = -1
"""The slot of the reference that a first report had."""


@dataclass(frozen=True)
class Look:
    """How a report looked: its title, and the colour slot of each strategy in their order.

    slots: strategy -> colour slot.
    """

    title: str = ""
    slots: Mapping[str, int] = field(default_factory=dict)

    def with_names(self, names: Iterable[str], reference: str | None) -> dict[str, int]:
        """Return the slot of each of these: those it had, and free ones for the others.

        names: the strategies shown now. reference: has a slot of its own.
        """
        slots = {name: self.slots[name] for name in names if name in self.slots}
        slots_in_use = set(self.slots.values())
        for name in names:
            if name in slots:
                continue
            if name == reference and GREY not in slots_in_use:
                slot = GREY
            else:
                slot = next(i for i in range(len(slots_in_use) + 1) if i not in slots_in_use)
            slots_in_use.add(slot)
            slots[name] = slot
        return slots

    def sort(self, names: Iterable[str]) -> list[str]:
        """Return the names in the order of this look; new ones after them, as they come."""
        names = list(names)
        names_with_slot = [name for name in self.slots if name in names]
        return [*names_with_slot, *(name for name in names if name not in names_with_slot)]


def read_look(*folders: Path) -> Look:
    """Return the look of the first report there is in these folders; an empty one without any.

    A file that is no report of this version says nothing: the report is then made as a first one.
    """
    for folder in folders:
        try:
            document: Any = from_json((folder / FILE).read_text(encoding="utf-8"))
            slots = {str(name): int(slot) for name, slot in document["colours"].items()}
            return Look(str(document["title"]), slots)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return Look()
