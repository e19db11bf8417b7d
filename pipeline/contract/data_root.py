"""Whether a data root is there at all: an unmounted disk or a misspelt setting must not look like an empty one."""

from __future__ import annotations

from pipeline.contract.store import Store, StoreError


class NoDataRoot(StoreError):
    """A folder or a prefix that is no data root. `str()` of it says how to begin."""


def check_raw(store: Store) -> None:
    """Check that the data root has a place for raw logs, without which no run begins. Nothing is written.

    Raises:
        NoDataRoot: There is no `raw/`; in a bucket: no object lies below it.
        StoreError: The store does not answer.
    """
    layout = store.layout
    if store.has_folder(layout.raw):
        return
    raw, root = store.name_of(layout.raw), store.name_of(layout.root)
    if store.has_folder(layout.rollups):  # something was published here, so this is the right place
        raise NoDataRoot(
            f"there is no {raw}, but {root} has rollups/: bring it back (a disk may not be mounted), or create it again"
            " if its logs were deleted on purpose. Nothing was changed"
        )
    raise NoDataRoot(f"there is no {raw}: {store.how_to_begin()}. Nothing was changed")


def check_data(store: Store) -> None:
    """Check that the data root has `raw/` or `rollups/`: without either, a zero means nothing.

    Raises:
        NoDataRoot: It has neither.
        StoreError: The store does not answer.
    """
    if not has_data(store):
        root = store.name_of(store.layout.root)
        raise NoDataRoot(f"{root} has neither raw/ nor rollups/: {store.how_to_begin()}")


def has_data(store: Store) -> bool:
    """Return True if the data root has `raw/` or `rollups/`. Raises StoreError."""
    return store.has_folder(store.layout.rollups) or store.has_folder(store.layout.raw)
