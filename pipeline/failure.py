"""A failure in one sentence, and the note that a run which failed leaves for whoever looks in the morning."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.contract.seam import step
from pipeline.contract.settings import SettingsError
from pipeline.contract.store import StoreError
from pipeline.contract.wording import in_a_line
from pipeline.errors import KeytallyError

if TYPE_CHECKING:
    from pipeline.run import Run

OUR_DISK = "the disk of the data root"

log = logging.getLogger(__name__)


def note_failure(run: Run, error: Exception) -> None:
    """Note that this run failed, whose engine is closed. Its scratch is emptied: it may be what filled the disk.

    Where even the note fails, nothing is noted: what went wrong first is what counts.
    """
    if isinstance(error, StoreError):
        return  # which has been tried for long enough
    unfinished = run.scratch / run.layout.failed_run.name
    note = {"started": run.started.isoformat(), "failed": run.clock().isoformat(), "why": sentence_of(error)}
    try:
        _empty(run.scratch)
        step("write the note of a failure")
        unfinished.write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
        run.store.write(unfinished, run.layout.failed_run)
    except (OSError, StoreError) as another:
        log.warning("%s cannot be written: %s", run.store.name_of(run.layout.failed_run), another)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def is_interruption(error: BaseException) -> bool:
    """Return True if a signal ended the work. DuckDB raises an error of its own then, not the signal's."""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, RuntimeError) and str(error) == "Query interrupted"
    )


def sentence_of(error: Exception) -> str:
    """What went wrong and what to do next, in one line. What is nobody's error but ours is said to be a fault."""
    if isinstance(error, (KeytallyError, SettingsError, StoreError)):
        return str(error)
    if isinstance(error, OSError):
        where = " to ".join(str(name) for name in (error.filename, error.filename2) if name)
        what = in_a_line(error.strerror or str(error))
        return f"{where}{': ' if where else ''}{what}; {_after(what, 'that disk' if where else OUR_DISK)}"
    import duckdb  # noqa: PLC0415  # which a run with nothing new, and a command that only looks, do without
    from deltalake.exceptions import DeltaError  # noqa: PLC0415

    if isinstance(error, (duckdb.Error, DeltaError)):
        first_line = str(error).strip().split("\n", 1)[0]
        return f"{first_line}; {_after(str(error))}"
    what = f"{type(error).__name__}: {in_a_line(str(error))}"
    return f"a fault in keytally ({what}); report what 'keytally --debug ...' says of the same command"


def _after(what: str, disk: str = OUR_DISK) -> str:
    """What to do after an accident, by what the system says of it: it reaches us through three libraries."""
    if os.strerror(errno.ENOSPC) in what or os.strerror(errno.EDQUOT) in what:
        return f"make room on {disk}, then run the command again"
    if os.strerror(errno.ENOENT) in what:
        return "see whether it should be there, then run the command again"
    if any(os.strerror(number) in what for number in (errno.EACCES, errno.EPERM, errno.EROFS)):
        return "see to its rights and owner, then run the command again"
    if "Out of Memory" in what:
        return "raise KEYTALLY_MEMORY_LIMIT, then run the command again"
    return "running the command again is safe"
