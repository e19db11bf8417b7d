"""Where the bytes of a data root lie: the one place that knows whether that is a folder or a bucket.

A file is named by its path below `layout.root`, wherever it lies. Our own files never change and their names end in
their checksum: to write one again, or to keep a copy, hurts nobody.
"""

from __future__ import annotations

import io
import os
import pwd
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pipeline.contract.layout import Layout
from pipeline.contract.seam import step
from pipeline.contract.settings import Settings, misspelling_of

_T = TypeVar("_T")

Signature = tuple[int | str, ...]  # what tells one state of a file from any other


class StoreError(Exception):
    """A store that does not answer, or refuses us. `str()` of it is one line: what was tried, where, and the answer."""


class Changed(OSError):
    """A raw file that is no longer the one that was listed."""


@dataclass(frozen=True)
class Found:
    """A file of ours. since: when it was written, or its grace was started; seconds since 1970."""

    path: Path
    since: float


@dataclass(frozen=True)
class RawFound:
    """What lies below raw/ under the name `file`. problem: why it cannot be looked at; then nothing else is known.

    is_file: whether it can be read at all. signature: begins with the size and a colon. changed_at: when it was last
    written to, renamed, or put where it lies; seconds since 1970.
    """

    file: str
    problem: str | None = None
    is_file: bool = True
    size: int = 0
    signature: str = ""
    changed_at: float = 0.0


class RawSource(io.RawIOBase):
    """A raw file that is open, unbuffered: what has been read is all that has been read."""

    def is_still(self, signature: str) -> bool:
        """Whether all that was read, or else what is there, is the file that was listed with this signature."""
        raise NotImplementedError

    def has_grown(self, signature: str) -> bool:  # noqa: ARG002  # an object never grows in place
        """Return True if the open file is the one that was listed, and is now at least as long as it was then.

        Whether its first bytes are still the same, only reading them again tells.
        """
        return False

    def size_now(self) -> int:
        """Return the size in bytes of the open file as it is now; 0 where that is not known."""
        return 0


@dataclass(frozen=True)
class LogState:
    """What can be seen of the published table's log. place: another one, another log; None where there is none.

    newest: its newest version, None where that takes opening the table. entry_of: the signature of a version's entry,
    None where there is none. note: another one, another note of the newest run.
    """

    place: Signature | None
    newest: int | None
    entry_of: Callable[[int], Signature | None]
    note: Signature | None


class Store(ABC):
    """The files of one data root. Safe to share between threads.

    What goes wrong with one file is an OSError, as FileNotFoundError where there is none; a store that does not answer
    at all, or refuses everything, is a StoreError.
    """

    look_seconds = 0.0  # for so long a document that is no number's may be taken for what it was at the last look

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    # --- as a whole --------------------------------------------------------------------------------------------------

    @abstractmethod
    def check(self) -> None:
        """Raises StoreError when there is no such data root, or it cannot be reached."""

    @abstractmethod
    def name_of(self, path: Path) -> str:
        """A path as whoever runs the deployment knows it."""

    @abstractmethod
    def has_folder(self, folder: Path) -> bool:
        """Return True if the folder is there, even if it is empty; in a bucket, if an object lies below it.

        Raises StoreError.
        """

    @abstractmethod
    def how_to_begin(self) -> str:
        """What to do where there is no data root yet, or where this is not the right one: the end of a sentence."""

    # --- our own files -----------------------------------------------------------------------------------------------

    @abstractmethod
    def fetch(self, path: Path, *, anew: bool = False) -> io.FileIO:
        """The bytes of `path`, in an open file on this machine. anew: as they are now, not from a copy."""

    @abstractmethod
    def fetch_all(self, paths: Sequence[Path], held: Path) -> Sequence[Path]:
        """The same of many, under their names, for as long as the folder `held`, which is not there yet, is not
        deleted."""

    @abstractmethod
    def keep(self, finished: Path, path: Path) -> None:
        """Move a finished file to where it stays, for good."""

    @abstractmethod
    def delete(self, path: Path) -> None:
        """Delete a file; one that is not there is deleted."""

    @abstractmethod
    def delete_found(self, found: Found) -> None:
        """Delete a file of which nobody knew any need when it was found, unless it was put there again since."""

    @abstractmethod
    def list(self, folder: Path) -> Iterator[Found]:
        """Every file below a folder, in no order; none where there is no such folder."""

    @abstractmethod
    def start_grace(self, paths: Iterable[Path], now: float) -> None:
        """Have `list` or `grace_started` say of these files that they were there since `now`."""

    def grace_started(self, path: Path) -> float:  # noqa: ARG002
        """When the grace of a file was started last, where `list` does not say so; seconds since 1970."""
        return 0.0

    def forget_graces(self, before: float) -> None:  # noqa: B027  # where they are the files' own
        """Forget what graces were started before that moment: all these files are needed again, or are deleted."""

    # --- documents, which change -------------------------------------------------------------------------------------

    @abstractmethod
    def open(self, path: Path) -> BinaryIO:
        """A file to read."""

    @abstractmethod
    def write(self, finished: Path, path: Path) -> None:
        """Put a finished file in the place of another."""

    @abstractmethod
    def signature(self, path: Path) -> Signature | None:
        """The signature of the file as it is; None where there is none. It begins with the size."""

    def check_rights(self) -> None:  # noqa: B027  # where the store itself says who may write
        """Raise StoreError where a folder of ours is another user's, who alone may write into it."""

    # --- lasting through a power cut ---------------------------------------------------------------------------------

    def make_folder(self, folder: Path) -> None:  # noqa: B027  # where names need no folders
        """Make a folder, and those above it that are missing, for good."""

    def sync(self, path: Path) -> None:  # noqa: B027  # where what was written was written for good
        """Bring a file, or the names in a folder, to the disk."""

    # --- the published table -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def table(self) -> tuple[str, Mapping[str, str]]:
        """Where deltalake finds the published table, and its storage options."""

    @abstractmethod
    def look_at_log(self, version: int | None) -> LogState:
        """The log, from the entry of `version` on: one listing at most."""

    def check_commits(self) -> None:  # noqa: B027  # where the system sees to it
        """To be called just before a commit. Raises StoreError where two writers might both be told that they made the
        same entry of the log, and where a file that was kept for it is gone."""

    def tried(self, what: str, path: Path, call: Callable[[], _T]) -> _T:  # noqa: ARG002
        """What `call` gives, which reaches the store by ways of its own. what, path: what it does, for an error."""
        return call()

    # --- raw logs ----------------------------------------------------------------------------------------------------

    def sees_run(self, name: str) -> bool:  # noqa: ARG002
        """Whether a run that is under way on another machine has this data root, as far as can be seen."""
        return True

    @abstractmethod
    def list_raw(self) -> Iterator[RawFound]:
        """What lies below raw/, in no order, names beginning with a dot or an underscore left out; none is opened."""

    @abstractmethod
    def open_raw(self, file: str, signature: str) -> RawSource:
        """A raw file to read from its beginning. Reading raises Changed where it is not the one of that signature."""

    @abstractmethod
    def parquet_source(self, file: str, signature: str) -> Any:
        """A raw file for Arrow to read here and there: a path, or an open file."""


def open_store(settings: Settings, patience: float = 10) -> Store:
    """The store that the data root of `settings` lies in. Nothing is looked at yet.

    patience: seconds for which a request that brings nothing is repeated. Raises StoreError.
    """
    if isinstance(settings.data, Path):
        return FolderStore(settings.data)
    from pipeline.contract.bucket import BucketStore  # noqa: PLC0415  # who has a folder need not wait for its client

    return BucketStore(settings.data, settings.cache, settings.cache_size, patience)


def this_machine() -> Store:
    """The files of this machine, for a log that is looked at where it lies."""
    return FolderStore(Path())


class FolderStore(Store):
    """A data root that is a folder."""

    def __init__(self, root: Path) -> None:
        super().__init__(Layout(root))

    def check(self) -> None:
        if not self.layout.root.is_dir():
            raise StoreError(
                f"the data folder {self.layout.root} does not exist; KEYTALLY_DATA says where it is:"
                f" {self.how_to_begin()}"
            )

    def check_rights(self) -> None:
        layout = self.layout
        flat = (layout.root, layout.scratch, layout.rejected, layout.buckets, layout.books)
        levels = {**dict.fromkeys(flat, 0), layout.events: 1, layout.daily: 1, layout.rollups: 2}
        for folder, depth in levels.items():
            for path in _folders_in(folder, depth):
                if os.access(path, os.R_OK | os.W_OK | os.X_OK):
                    continue
                # A disk that is mounted read-only is told by the first write, in the system's own words.
                if not os.statvfs(path).f_flag & os.ST_RDONLY:
                    raise StoreError(_other_owner(path))

    def name_of(self, path: Path) -> str:
        return str(path)

    def has_folder(self, folder: Path) -> bool:
        return folder.is_dir()

    def how_to_begin(self) -> str:
        if wrong := misspelling_of(str(self.layout.root)):
            return f"KEYTALLY_DATA is {str(self.layout.root)!r}: {wrong}"
        # Whole paths: a job that starts in another folder than a person does is the usual mistake.
        root, raw = self.layout.root.absolute(), self.layout.raw.absolute()
        return (
            f"if a disk belongs at {root}, mount it; if your logs are elsewhere, correct KEYTALLY_DATA; to begin here,"
            f" create {raw} and put request logs below it"
        )

    def fetch(self, path: Path, *, anew: bool = False) -> io.FileIO:  # noqa: ARG002
        return io.FileIO(path)

    def fetch_all(self, paths: Sequence[Path], held: Path) -> Sequence[Path]:  # noqa: ARG002
        return paths

    def keep(self, finished: Path, path: Path) -> None:
        # The bytes reach the disk before the name does: after a power cut there is the whole file or none.
        self.make_folder(path.parent)
        self.sync(finished)
        step("rename a file to where it stays")
        finished.replace(path)
        self.sync(path.parent)

    def delete(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def delete_found(self, found: Found) -> None:
        with suppress(FileNotFoundError):
            if found.path.stat().st_mtime == found.since:
                found.path.unlink()

    def list(self, folder: Path) -> Iterator[Found]:
        try:
            entries = os.scandir(folder)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from self.list(Path(entry.path))
                else:
                    with suppress(FileNotFoundError):
                        yield Found(Path(entry.path), entry.stat().st_mtime)

    def start_grace(self, paths: Iterable[Path], now: float) -> None:
        for path in paths:
            step("start the grace of a file")
            with suppress(FileNotFoundError):
                os.utime(path, (now, now))

    def open(self, path: Path) -> BinaryIO:
        return path.open("rb")

    def write(self, finished: Path, path: Path) -> None:
        self.sync(finished)
        step("replace a document")
        finished.replace(path)
        self.sync(path.parent)

    def signature(self, path: Path) -> Signature | None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino)

    def make_folder(self, folder: Path) -> None:
        if not folder.is_dir():
            self.make_folder(folder.parent)
            step("make a folder")
            folder.mkdir(exist_ok=True)
            self.sync(folder.parent)

    def sync(self, path: Path) -> None:
        step("sync a file or folder")
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    @property
    def table(self) -> tuple[str, Mapping[str, str]]:
        return str(self.layout.rollups), {}

    def look_at_log(self, version: int | None) -> LogState:  # noqa: ARG002
        note = None
        with suppress(OSError):
            note = self.signature(self.layout.last_run)
        try:
            found = self.layout.log.stat()
        except FileNotFoundError:
            return LogState(None, None, lambda _: None, note)
        entry_of = lambda version: self.signature(self.layout.log_entry(version))  # noqa: E731
        return LogState((found.st_dev, found.st_ino), None, entry_of, note)

    # --- raw logs ----------------------------------------------------------------------------------------------------

    def sees_run(self, name: str) -> bool:
        return (self.layout.scratch / name).is_dir()

    def list_raw(self) -> Iterator[RawFound]:
        """A link to a folder is followed, once."""
        return _walk(self.layout.raw, "", frozenset())

    def open_raw(self, file: str, signature: str) -> RawSource:  # noqa: ARG002  # asked for once it was read
        return _RawFile(self.layout.raw / file)

    def parquet_source(self, file: str, signature: str) -> Path:  # noqa: ARG002
        return self.layout.raw / file


def _folders_in(folder: Path, depth: int) -> Iterator[Path]:
    """A folder and those in it, so many levels deep; none where there is no such folder."""
    if folder.is_dir():
        yield folder
        if depth:
            with os.scandir(folder) as entries:
                for entry in entries:
                    yield from _folders_in(Path(entry.path), depth - 1)


def _other_owner(path: Path) -> str:
    """A sentence on a folder that this process may not write into: whose it is, and whose it has to be."""
    user = _user_named(os.geteuid())
    return (
        f"{path} belongs to {_user_named(path.stat().st_uid)}, and {user} may not write into it; a run as another user"
        f" made it: 'chown -R {user} {path}' gives it back. Nothing was changed"
    )


def _user_named(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:  # a container's user often has no name
        return str(number)


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[RawFound]:
    step("list a raw folder")
    try:
        here = folder.stat()
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    except OSError as error:
        yield RawFound(prefix or ".", f"unreadable: the folder cannot be listed ({error.strerror})")
        return
    identity = (here.st_dev, here.st_ino)
    if identity in above:  # a link back to a folder that we are in
        return
    for entry in entries:
        if entry.name.startswith((".", "_")):
            continue
        name = prefix + entry.name
        if _is_folder(entry):
            yield from _walk(Path(entry.path), name + "/", above | {identity})
        else:
            yield from _look_at(name, entry)


def _look_at(file: str, entry: os.DirEntry[str]) -> Iterator[RawFound]:
    try:
        found = entry.stat()
    except FileNotFoundError:
        if entry.is_symlink():  # perhaps to what is not mounted; else the file is gone since it was listed
            yield RawFound(file, "unreadable: a link to nothing")
    except OSError as error:
        yield RawFound(file, f"unreadable: {error.strerror}")
    else:
        is_file = stat.S_ISREG(found.st_mode)
        yield RawFound(file, None, is_file, found.st_size, _raw_signature(found), found.st_ctime_ns / 10**9)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, or through a folder closed to us
        return False


def _raw_signature(found: os.stat_result) -> str:
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}:{found.st_ino}"


class _RawFile(io.FileIO, RawSource):
    """A raw file in a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path

    def is_still(self, signature: str) -> bool:
        # The handle too: of two files that changed places, only the path has the signature.
        try:
            now = _raw_signature(self._path.stat())
        except OSError:
            return False
        return now == _raw_signature(os.fstat(self.fileno())) == signature

    def has_grown(self, signature: str) -> bool:
        # The handle, not the path: a log that is renamed meanwhile is still the log that was listed.
        now = os.fstat(self.fileno())
        size, _, inode = signature.partition(":")[0], *signature.rpartition(":")[1:]
        return str(now.st_ino) == inode and now.st_size >= int(size)

    def size_now(self) -> int:
        return os.fstat(self.fileno()).st_size
