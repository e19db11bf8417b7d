"""Files of ours that never change: each is named by what it was made from and by the checksum of its bytes.

A name that exists is work that is done; a name that does not is work to do. Whoever holds the name can tell a file
that was damaged from one that was not.
"""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.contract.layout import below_the_root, checksum_of, stated_checksum
from pipeline.errors import ArtifactDamaged
from pipeline.seam import step


def keep(finished: Path, folder: Path, made_from: str) -> str:
    """Move a finished file from the scratch folder to where it stays; its name there.

    The bytes reach the disk before the name does: after a power cut there is the whole file or none.
    """
    name = f"{made_from}-{checksum_of(finished)}{finished.suffix}"
    make_folder(folder)
    sync(finished)
    step("rename a file to where it stays")
    finished.replace(folder / name)
    sync(folder)
    return name


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, and bring their names to the disk."""
    if not folder.is_dir():
        make_folder(folder.parent)
        step("make a folder")
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def verify(artifact: Path) -> None:
    """Raise ArtifactDamaged unless the file is there and holds the bytes its name was given for."""
    step("verify a file")
    try:
        whole = checksum_of(artifact) == stated_checksum(artifact)
    except FileNotFoundError:
        raise ArtifactDamaged(below_the_root(artifact), "is missing") from None
    except OSError as error:
        raise ArtifactDamaged(below_the_root(artifact), f"cannot be read ({error.strerror})") from error
    if not whole:
        raise ArtifactDamaged(below_the_root(artifact), "is damaged: its bytes are not those that were written")


def sync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    step("sync a file or folder")
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
