"""Raw files: which are there, and one streaming pass over each.

The pass hashes the bytes as they lie on the disk, inflates them with their checksum checked, and hands them over in
Arrow batches of bounded size. The bytes hashed are the bytes parsed. Of a log that grows meanwhile, the pass reads the
whole lines of what was there when it was listed. A file that changes inside the part that is read is held back.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from isal import igzip
from isal.igzip_lib import IsalError

from pipeline import json_file, rows, tabular
from pipeline.contract.seam import step
from pipeline.contract.store import Changed, RawFound, RawSource, Store
from pipeline.errors import HeldBack
from pipeline.format import JSON_ENDINGS, NATIVE, Format, folder_of, formats_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PARQUET_ENDING = ".parquet"
CSV_ENDINGS = (".csv", ".csv.gz")
# Whatever is compressed, and Parquet, is unreadable while it grows: its end says how to read it.
GROWING_ENDINGS = (".jsonl", ".ndjson", ".json", ".csv")
CHANGING = "changing:"  # begins the reason to hold back a file that changed inside the part that was read
TAIL_BYTES = 2**16  # of a file's end that are looked at together for the end of its last whole line
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class RawFile:
    """A file below raw/ at the moment it was listed. While its signature stays the same it is not opened again."""

    file: str  # path below raw/, with forward slashes
    format: Format
    size: int  # bytes
    signature: str  # of this state of it: size, times and inode, or size and ETag
    changed_at: float  # when it was last written to, renamed, or put where it lies; seconds since 1970
    store: Store = field(repr=False, compare=False)

    @property
    def read_as(self) -> str:
        """The format and the ending: what the same bytes hold depends on both. `native.jsonl.gz`"""
        return self.format.name + next(ending for ending in self.format.endings if self.file.endswith(ending))

    @property
    def may_grow(self) -> bool:
        """Whether lines may be appended to it while it is read."""
        return self.file.endswith(GROWING_ENDINGS)

    def part(self, size: int) -> RawFile:
        """The first `size` bytes of the file, as a file of that size: what a ledger knows of a log that grows."""
        return self if size == self.size else replace(self, size=size)

    def signature_of(self, size: int) -> str:
        """The signature for the ledger if only the first `size` bytes are ingested: a signature begins with the size.

        No file ever has this signature: the file that was listed was longer.
        """
        return f"{size}:{self.signature.partition(':')[2]}"

    def has_grown_since(self, signature: str) -> bool:
        """Return True if the file may be a log that has had this signature and has only grown since.

        Only the hash of the bytes it had then tells for certain.
        """
        if self.signature == signature:
            return True
        is_same_file = self.signature.rpartition(":")[2] == signature.rpartition(":")[2]
        return self.may_grow and is_same_file and self.size >= int(signature.partition(":")[0])

    def __getstate__(self) -> dict[str, Any]:
        # Sent to another machine, it is opened by that machine's own store.
        return {**self.__dict__, "store": None}

    def in_store(self, store: Store) -> RawFile:
        """The same file, opened by `store`."""
        return replace(self, store=store)

    def open(self) -> RawSource:
        """The file, to be read from its beginning. Raises OSError."""
        return self.store.open_raw(self.file, self.signature)

    def parquet_source(self) -> Any:
        """What Arrow reads it from."""
        return self.store.parquet_source(self.file, self.signature)


@dataclass(frozen=True)
class RawListing:
    """Everything below raw/: what is read, and what no format reads with the reason, in order of path."""

    files: tuple[RawFile, ...]
    ignored: Mapping[str, str]
    held_back: tuple[HeldBack, ...]  # folders that cannot be listed, files that cannot be looked at


def list_raw(store: Store) -> RawListing:
    """What lies below raw/, names beginning with a dot or an underscore left out. No file is opened.

    Raises StoreError.
    """
    formats = formats_of(store)
    files: list[RawFile] = []
    ignored: dict[str, str] = {}
    held_back: list[HeldBack] = []
    for found in store.list_raw():
        file = found.file
        if found.problem:
            held_back.append(HeldBack(file, found.problem))
            continue
        format = formats.get(folder_of(file) or "", NATIVE)
        if why := _why_ignored(found, format):
            ignored[file.encode("utf-8", "replace").decode()] = why
        else:
            files.append(RawFile(file, format, found.size, found.signature, found.changed_at, store))
    files.sort(key=lambda raw_file: raw_file.file)
    return RawListing(tuple(files), dict(sorted(ignored.items())), tuple(held_back))


def _why_ignored(found: RawFound, format: Format) -> str | None:
    if not found.is_file:
        return "it is no file"
    if not _is_text(found.file):
        return "its name is no UTF-8"
    if found.file.endswith(format.endings):
        return None
    if found.file.endswith(CSV_ENDINGS) and not format.is_mapped:
        return (
            "CSV is read below the folder of a format that says '-- reads: csv': raw/csv/ for the columns of requests"
        )
    if format.is_mapped:
        return f"the format {format.name} reads {format.endings_text}"
    return f"what is read is {format.endings_text}"


def _is_text(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # bytes that are no UTF-8 cannot be written into the ledger
        return False
    return True


class HalfLineError(Exception):
    """A log has grown since it was listed, and what was read of it ends within a line: read its whole lines only."""


class RawPass:
    """One pass over a raw file: first `batches()` to the end, then `content()`.

    A context manager. Raises HeldBack for a file that is truncated, corrupt, unreadable, or changed meanwhile inside
    the part that is read. size: bytes of that part: the file as it was listed, or its whole lines where it has grown.
    """

    def __init__(
        self,
        raw_file: RawFile,
        on_read: Callable[[int], None] = lambda _: None,
        *,
        start: int = 0,
        whole_lines: bool = False,
        as_far_as_readable: bool = False,
    ) -> None:
        """Open a raw file.

        Args:
            raw_file: the file as it was listed.
            on_read: is told of every so many bytes that are read.
            start: where to begin, in bytes: at the beginning of a line.
            whole_lines: leave out what stands behind the last end of a line.
            as_far_as_readable: take an error for the end of the file. `content()` is of no use then.
        """
        self.raw_file = raw_file
        self.size = raw_file.size
        self._on_read = on_read
        self._as_far_as_readable = as_far_as_readable
        self._hash = hashlib.sha256()
        step("open a raw file")
        with self._errors_as_held_back():
            # Unbuffered: what has been read is what has been hashed.
            self._source = raw_file.open()
            try:
                if whole_lines or not self._source.is_still(raw_file.signature):
                    self._leave_out_half_line()
                if start:
                    self._source.seek(start)
            except BaseException:
                self._source.close()
                raise
        self._left = self.size - start

    def __enter__(self) -> RawPass:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    @property
    def is_parquet(self) -> bool:
        """Whether it is read as rows. An empty file has no lines, whatever its name says."""
        return self.raw_file.size > 0 and self.raw_file.file.endswith(PARQUET_ENDING)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The file's lines (schema rows.LINES), or the rows of a Parquet file (the schema of its rows.ParquetRows); for
        a mapped format both are records (schema rows.LINES).

        Their numbers go up, from batch to batch too. Blank lines are left out.
        """
        try:
            yield from self._batches()
        except HeldBack:
            if not self._as_far_as_readable:
                raise

    def _batches(self) -> Iterator[pa.RecordBatch]:
        with self._errors_as_held_back():
            if self.is_parquet:
                # Parquet is read from its end: hash all of it first, and read it through a handle of its own.
                self._drain()
                source = self.raw_file.parquet_source()
                is_mapped = self.raw_file.format.is_mapped
                batches = tabular.parquet_records(source) if is_mapped else rows.ParquetRows(source).batches()
            elif self.raw_file.file.endswith(CSV_ENDINGS):
                batches = tabular.csv_records(self._plain(), self.raw_file.format.csv)
            else:
                batches = rows.line_batches(self._lines(), is_mapped=self.raw_file.format.is_mapped)
            yield from batches

    def content(self) -> str:
        """Return the SHA-256 (hex) of the part that was read: `size` bytes of the file that was listed.

        Raises:
            HeldBack: the part has changed while it was read.
            HalfLineError: the file has grown, and the part ends within a line.
        """
        content = self._hash
        with self._errors_as_held_back():
            self._drain()
            if not self._source.is_still(self.raw_file.signature):
                if not self._only_grew(content.hexdigest()):
                    raise Changed
                if self._whole_lines() != self.size:
                    raise HalfLineError
        return content.hexdigest()

    def _only_grew(self, content: str) -> bool:
        """Return True if the file is a log whose first `size` bytes are what they were when they were read."""
        if not self._is_growing():
            return False
        self._source.seek(0)
        self._left = self.size
        self._hash = hashlib.sha256()
        self._drain()
        # Looked at last: a log that was emptied meanwhile is shorter.
        return self._hash.hexdigest() == content and self._source.has_grown(self.raw_file.signature)

    def _is_growing(self) -> bool:
        if not (self.raw_file.may_grow and self._source.has_grown(self.raw_file.signature)):
            return False
        if not self.raw_file.file.endswith(".json"):
            return True
        self._source.seek(0)
        buffered = io.BufferedReader(self._source, TAIL_BYTES)
        is_log = json_file.begins_as_log(buffered)  # not one record over many lines
        buffered.detach()  # it would close the file
        self._source.seek(0)
        return is_log

    def _leave_out_half_line(self) -> None:
        if self._is_growing():
            self.size = self._whole_lines()
            self._source.seek(0)

    def _whole_lines(self) -> int:
        """Return how many of the first `size` bytes are whole lines."""
        end = self.size
        while end:
            start = max(end - TAIL_BYTES, 0)
            self._source.seek(start)
            tail = bytearray()
            while len(tail) < end - start and (piece := self._source.read(end - start - len(tail))):
                tail += piece
            if (found := tail.rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
        return 0

    def texts(self, lines: Iterable[int], characters: int) -> Iterator[tuple[int, str]]:
        """Some lines, by their numbers in order, each cut at `characters`. Instead of `batches()`."""
        with self._errors_as_held_back():
            if self.is_parquet and self.raw_file.format.is_mapped:
                yield from tabular.record_texts(self.raw_file.parquet_source(), lines, characters)
            elif self.is_parquet:
                yield from rows.row_texts(self.raw_file.parquet_source(), lines, characters)
            else:
                yield from rows.line_texts(self._lines(), lines, characters)

    def _lines(self) -> rows.Plain:
        plain = self._plain()
        return json_file.lines_of(plain) if self.raw_file.file.endswith(JSON_ENDINGS) else plain  # type: ignore[arg-type]

    def beginning(self, size: int) -> bytes:
        """The first `size` bytes of the file's text, inflated. Instead of `batches()`."""
        with self._errors_as_held_back():
            beginning = bytearray(size)
            return bytes(beginning[: self._plain().readinto(memoryview(beginning))])

    def _plain(self) -> rows.Plain:
        plain = self._inflated()
        return io.BufferedReader(_Readable(plain), 256 * 2**10) if self._as_far_as_readable else plain

    def _inflated(self) -> rows.Plain:
        hashed = io.BufferedReader(_Hashed(self), 256 * 2**10)
        if self.raw_file.size == 0:
            return hashed  # an empty file has no lines, whatever its name says
        if self.raw_file.file.endswith(".gz"):
            if not GZIP_MAGIC.startswith(hashed.peek(2)[:2]):  # of a short one the inflater says that it ended early
                raise gzip.BadGzipFile("not gzip")
            if self._as_far_as_readable:  # igzip keeps to itself what it inflated before an error
                return gzip.GzipFile(fileobj=hashed)
            gzipped: rows.Plain = igzip.GzipFile(fileobj=hashed)  # type: ignore[no-untyped-call]
            return gzipped
        if self.raw_file.file.endswith(".zst"):
            return zstd.ZstdFile(hashed)
        return hashed

    def _drain(self) -> None:
        hashed = _Hashed(self)
        while hashed.read(rows.BLOCK_BYTES):
            pass

    def readinto(self, buffer: Any) -> int:
        """Read the next bytes of the part as they lie on the disk, and hash them."""
        step("read a raw file")
        wanted = memoryview(buffer)[: self._left]
        count = self._source.readinto(wanted) or 0 if len(wanted) else 0
        self._hash.update(wanted[:count])
        self._left -= count
        self._on_read(count)
        return count

    def _held_back(self, reason: str) -> HeldBack:
        return HeldBack(self.raw_file.file, reason)

    @contextmanager
    def _errors_as_held_back(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = _reason_to_hold_back(error)
            if reason is None:
                raise
            raise self._held_back(reason) from error


def hash_raw(raw_file: RawFile) -> str:
    """SHA-256 (hex) of a file's bytes, read but neither inflated nor parsed. Raises HeldBack, HalfLineError."""
    with RawPass(raw_file) as opened:
        return opened.content()


def size_now(raw_file: RawFile) -> int:
    """Return how many bytes a log has now that may grow; 0 for any other file. Raises OSError, StoreError."""
    if not raw_file.may_grow:
        return 0
    with raw_file.open() as opened:
        return opened.size_now()


def part_of(raw_file: RawFile, signature: str, content: str) -> RawFile | None:
    """Return the part of a raw file that was ingested under a signature; None where the file has another content now.

    The part is hashed where the file is not as it was then.
    """
    if raw_file.signature == signature:
        return raw_file
    if not raw_file.has_grown_since(signature):
        return None
    part = raw_file.part(int(signature.partition(":")[0]))
    with suppress(HeldBack, HalfLineError):
        return part if hash_raw(part) == content else None
    return None


def read_texts(raw_file: RawFile, lines: Iterable[int], characters: int) -> Iterator[tuple[int, str]]:
    """Some of a file's lines, by their numbers in order, with their texts cut at `characters`; a Parquet row as JSON.

    Bytes that are no UTF-8 are shown as U+FFFD. Raises HeldBack.
    """
    with RawPass(raw_file) as opened:
        yield from opened.texts(lines, characters)


class _Hashed(io.RawIOBase):
    """The part of a file that a pass reads; every byte that is read is hashed."""

    def __init__(self, opened: RawPass) -> None:
        self._opened = opened

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return self._opened.readinto(buffer)


class _Readable(io.RawIOBase):
    """What can be read of a file that cannot be read to its end."""

    def __init__(self, plain: rows.Plain) -> None:
        self._plain = plain

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            # One read below it: of several, what came before an error would be lost.
            piece: bytes = self._plain.read1(len(buffer))  # type: ignore[attr-defined]  # every file object has it
        except Exception as error:
            if _reason_to_hold_back(error) is None:
                raise
            return 0
        buffer[: len(piece)] = piece
        return len(piece)


def _reason_to_hold_back(error: Exception) -> str | None:
    # Arrow's messages can run over lines and name the path; the first line says it.
    first_line = str(error).split("\n", 1)[0][:200]
    if isinstance(error, Changed):
        return f"{CHANGING} what was read of it was overwritten meanwhile; the next run tries again"
    if isinstance(error, (rows.UnusableParquet, tabular.UnusableCsv)):
        return str(error)
    if isinstance(error, (EOFError, gzip.BadGzipFile, IsalError, zlib.error, zstd.ZstdError)):  # type: ignore[arg-type]
        return _reason_of_compressed(error, first_line)
    # A column's name that is no text: Arrow reads it, Python does not.
    if isinstance(error, (OSError, pa.ArrowException, UnicodeDecodeError)):
        return f"unreadable: {getattr(error, 'strerror', None) or first_line}"
    return None


def _reason_of_compressed(error: Exception, first_line: str) -> str:
    if isinstance(error, EOFError):
        return "truncated: the compressed data ends early, or has something behind it"
    if "too much memory" in first_line:
        return (
            "unreadable: reading it takes a window of more than 128 MiB (zstd --long=28 or more); compress it anew with"
            " --long=27 or less"
        )
    if first_line.startswith("Not a gzipped file"):  # else it would have been refused before it was inflated
        return (
            "corrupt: something that is no gzip stands behind the end of the gzip data; 'gzip -t' ignores it, and it"
            " may be lines that were appended: compress the file anew"
        )
    return f"corrupt: {first_line}"
