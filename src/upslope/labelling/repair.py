"""Check a labelling project, and save what is sound of a damaged one into a new folder.

Called by `upslope verify` and `upslope repair`. A project is its log: features and rankings are
made again where they are missing.
"""

from __future__ import annotations

from pathlib import Path

from upslope.errors import RunError
from upslope.experiment.verify import Repair, Verification, chain_notes, check_new_folder
from upslope.files import new_folder
from upslope.labelling.project import FORMAT, PRIVATE_FILE, PRIVATE_FOLDER, read_project
from upslope.ledger.log import is_begun
from upslope.ledger.salvage import save_what_is_sound
from upslope.ledger.store import chain_start


def is_project(folder: Path) -> bool:
    """Say whether a folder holds a labelling project, sound or damaged."""
    return (folder / FORMAT.file).is_file()


def verify_project(folder: Path) -> Verification:
    """Check the log of a project, event by event; nothing is changed.

    folder: of the project.
    """
    try:
        read_project(folder)
        begins, events = chain_start(folder / FORMAT.file)
    except RunError as error:
        return Verification(0, (), (str(error),), ())
    return Verification(events, (), (), chain_notes(begins, events))


def repair_project(folder: Path, out: Path) -> Repair:
    """Save every event before the first damaged one into a new project, which is its owner's alone.

    folder: of the project. out: new, or empty.

    Raises:
        RunError: `out` is not empty or cannot be written, or what the project began with cannot be
            read. Nothing is then left of `out`.
    """
    check_new_folder(out)
    if not is_begun(folder / FORMAT.file):
        read_project(folder)  # raises the error for an empty log
    with new_folder(out) as new:
        new.chmod(PRIVATE_FOLDER)
        (new / FORMAT.file).touch(mode=PRIVATE_FILE)
        count, losses = save_what_is_sound(folder / FORMAT.file, new / FORMAT.file, FORMAT)
    return Repair(count, losses, ())
