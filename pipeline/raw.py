"""Raw files: which are there, and one streaming pass over each.

The pass hashes the bytes as they lie on the disk, inflates them with their checksum checked, and hands them over in
Arrow batches of bounded size. The bytes hashed are the bytes parsed: a file that was written to meanwhile is held back.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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


class RawPass:
    """One pass over a raw file: first `batches()` to the end, then `content()`.

    A context manager. Raises HeldBack for a file that is truncated, corrupt, unreadable, or written to meanwhile.
    """

    def __init__(self, raw_file: RawFile, on_read: Callable[[int], None] = lambda _: None) -> None:
        """on_read: is told of every so many bytes that are read."""
        self.raw_file = raw_file
        self._on_read = on_read
        self._hash = hashlib.sha256()
        step("open a raw file")
        with self._errors_as_held_back():
            # Unbuffered: what has been read is what has been hashed.
            self._source = raw_file.open()

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
        """SHA-256 (hex) of the whole file, which is the one that was listed and was at rest while it was read.

        Raises HeldBack otherwise.
        """
        with self._errors_as_held_back():
            self._drain()
            if not self._source.is_still(self.raw_file.signature):
                raise Changed
        return self._hash.hexdigest()

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
        hashed = io.BufferedReader(_Hashed(self._source, self._hash, self._on_read), 256 * 2**10)
        if self.raw_file.size == 0:
            return hashed  # an empty file has no lines, whatever its name says
        if self.raw_file.file.endswith(".gz"):
            if not GZIP_MAGIC.startswith(hashed.peek(2)[:2]):  # of a short one the inflater says that it ended early
                raise gzip.BadGzipFile("not gzip")
            gzipped: rows.Plain = igzip.GzipFile(fileobj=hashed)  # type: ignore[no-untyped-call]
            return gzipped
        if self.raw_file.file.endswith(".zst"):
            return zstd.ZstdFile(hashed)
        return hashed

    def _drain(self) -> None:
        hashed = _Hashed(self._source, self._hash, self._on_read)
        while hashed.read(rows.BLOCK_BYTES):
            pass

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
    """SHA-256 (hex) of a file's bytes, read but neither inflated nor parsed. Raises HeldBack."""
    with RawPass(raw_file) as opened:
        return opened.content()


def read_texts(raw_file: RawFile, lines: Iterable[int], characters: int) -> Iterator[tuple[int, str]]:
    """Some of a file's lines, by their numbers in order, with their texts cut at `characters`; a Parquet row as JSON.

    Bytes that are no UTF-8 are shown as U+FFFD. Raises HeldBack.
    """
    with RawPass(raw_file) as opened:
        yield from opened.texts(lines, characters)


class _Hashed(io.RawIOBase):
    """A file of which every byte that is read is hashed."""

    def __init__(self, source: RawSource, digest: Any, on_read: Callable[[int], None]) -> None:
        self._source = source
        self._digest = digest
        self._on_read = on_read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        step("read a raw file")
        count = self._source.readinto(buffer) or 0
        self._digest.update(memoryview(buffer)[:count])
        self._on_read(count)
        return count


def _reason_to_hold_back(error: Exception) -> str | None:
    # Arrow's messages can run over lines and name the path; the first line says it.
    first_line = str(error).split("\n", 1)[0][:200]
    if isinstance(error, Changed):
        return "changing: it was written to while it was read; the next run tries again"
    if isinstance(error, (rows.UnusableParquet, tabular.UnusableCsv)):
        return str(error)
    if isinstance(error, EOFError):
        return "truncated: the compressed data ends early, or has something behind it"
    if isinstance(error, (gzip.BadGzipFile, IsalError, zlib.error, zstd.ZstdError)):  # type: ignore[arg-type]
        return f"corrupt: {first_line}"
    # A column's name that is no text: Arrow reads it, Python does not.
    if isinstance(error, (OSError, pa.ArrowException, UnicodeDecodeError)):
        return f"unreadable: {getattr(error, 'strerror', None) or first_line}"
    return None
