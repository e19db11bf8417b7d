"""Find the raw file that holds a content of the ledger now: under its name, renamed, or as the beginning of a log."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.ledger import FileEntry, Ledger
from pipeline.raw import RawFile

BLOCK_BYTES = 2**20


class Found(NamedTuple):
    """A content where it lies now: the first `size` bytes of a raw file."""

    raw_file: RawFile
    size: int


class Contents:
    """Which raw file holds which content now, by its hash alone.

    A log that was appended to holds what it held before in its beginning, compressed or not.
    """

    def __init__(self, raw_files: Sequence[RawFile]) -> None:
        self._by_name = {raw_file.file: raw_file for raw_file in raw_files}
        self._by_size: dict[int, list[RawFile]] = {}
        self._by_inode: dict[str, list[RawFile]] = {}
        for raw_file in raw_files:
            self._by_size.setdefault(raw_file.size, []).append(raw_file)
            self._by_inode.setdefault(_inode_of(raw_file), []).append(raw_file)
        self._hashes: dict[tuple[str, int], str | None] = {}

    def where(self, entries: Sequence[FileEntry]) -> Found | None:
        """Where the content of these entries lies: under one of their names, or since then renamed."""
        wanted = entries[0].take_in
        # Of an emptied file, the signature tells the size of what it holds now.
        for size in sorted({size_of(entry) for entry in entries}, reverse=True):
            named = [self._by_name[entry.file] for entry in entries if entry.file in self._by_name]
            renamed = [raw_file for entry in entries for raw_file in self._by_inode.get(_inode_of(entry), [])]
            for raw_file in (*named, *renamed, *self._by_size.get(size, [])):
                if raw_file.read_as == wanted.format and self._hash_of(raw_file, size) == wanted.content:
                    return Found(raw_file, size)
        return None

    def is_waiting(self, raw_file: RawFile, ledger: Ledger) -> bool:
        """Whether the version does not know this file, or not with this content. Touched is not changed."""
        entry = ledger.files.get(raw_file.file)
        if entry is None:
            return True
        return entry.signature != raw_file.signature and self._hash_of(raw_file, raw_file.size) != entry.take_in.content

    def _hash_of(self, raw_file: RawFile, size: int) -> str | None:
        """SHA-256 (hex) of a raw file's first `size` bytes; None where they are no content of their own."""
        if raw_file.size < size or (raw_file.size > size and raw_file.file.endswith(".parquet")):
            return None
        key = (raw_file.file, size)
        if key not in self._hashes:
            self._hashes[key] = _hash_of_beginning(raw_file, size)
        return self._hashes[key]


def _hash_of_beginning(raw_file: RawFile, size: int) -> str | None:
    found = hashlib.sha256()
    try:
        with raw_file.open() as file:
            while size and (block := file.read(min(size, BLOCK_BYTES))):
                found.update(block)
                size -= len(block)
    except OSError:
        return None
    return None if size else found.hexdigest()


def size_of(entry: FileEntry) -> int:
    """Size in bytes of an entry's file when it was looked at."""
    return int(entry.signature.partition(":")[0])


def _inode_of(file: FileEntry | RawFile) -> str:
    return file.signature.rpartition(":")[2]


def is_still_there(found: Found, entry: FileEntry) -> bool:
    """Whether what was read is what was hashed before: nobody wrote to the file, or only behind it."""
    if _is_as_listed(found.raw_file):
        return True
    growing = not found.raw_file.file.endswith(".parquet")
    return growing and _hash_of_beginning(*found) == entry.take_in.content


def _is_as_listed(raw_file: RawFile) -> bool:
    """Whether a file lies there as it was listed: before it was hashed, and so before it was read."""
    try:
        with raw_file.open() as opened:
            return opened.is_still(raw_file.signature)
    except OSError:
        return False
