"""Files of ours that never change: each is named by what it was made from and by the checksum of its bytes.

A name that exists is work that is done; a name that does not is work to do. Whoever holds the name can tell a file
that was damaged from one that was not.
"""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa

from pipeline.contract.layout import below_the_root, checksum_in, checksum_of, stated_checksum
from pipeline.contract.seam import step
from pipeline.contract.store import Store
from pipeline.errors import ArtifactDamaged


def keep(store: Store, finished: Path, folder: Path, made_from: str) -> str:
    """Move a finished file from the scratch folder to where it stays; its name there.

    A crash or a power cut leaves the whole file there or none.
    """
    name = f"{made_from}-{checksum_of(finished)}{finished.suffix}"
    store.keep(finished, folder / name)
    return name


def verify(store: Store, artifact: Path, *, anew: bool = False) -> None:
    """Look whether a file holds the bytes its name was given for. anew: as they lie in the store now.

    Raises as `verified`.
    """
    verified(store, artifact, anew=anew).close()


def verified_for_arrow(store: Store, artifact: Path) -> pa.OSFile:
    """As `verified`, for Arrow, which may read it in threads of its own.

    Arrow would keep what it read from a Python file as Python's bytes. A thread that lets go of them while Python ends
    takes the whole process down with it.
    """
    with verified(store, artifact) as found:
        return pa.OSFile(f"/dev/fd/{found.fileno()}")


def verified(store: Store, artifact: Path, *, anew: bool = False) -> io.FileIO:
    """The file, open on this machine, with the bytes its name was given for. anew: as they lie in the store now.

    Raises ArtifactDamaged unless it is there and holds them, StoreError.
    """
    step("verify a file")
    try:
        found = store.fetch(artifact, anew=anew)
        whole = checksum_in(found) == stated_checksum(artifact)
        if not whole and not anew:  # it may be a copy that is damaged
            found.close()
            found = store.fetch(artifact, anew=True)
            whole = checksum_in(found) == stated_checksum(artifact)
    except FileNotFoundError:
        raise ArtifactDamaged(below_the_root(artifact), "is missing") from None
    except OSError as error:
        raise ArtifactDamaged(below_the_root(artifact), f"cannot be read ({error.strerror})") from error
    if not whole:
        found.close()
        raise ArtifactDamaged(below_the_root(artifact), "is damaged: its bytes are not those that were written")
    return found
