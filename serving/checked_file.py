"""A published file that is checked whenever it is read: an error, never a wrong number."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

from pipeline.contract.layout import stated_checksum


class OtherBytes(ValueError):
    """A file that is not what was published."""

    def __init__(self) -> None:
        super().__init__("its bytes are not those that were published")


class CheckedFile(io.RawIOBase):
    """A published file whose bytes are those that its name was given for: at the first look, and at each read.

    Its blocks are hashed when all of it is, and again when they are read, so that what is damaged on the disk
    afterwards is an error as well. 32 bytes of memory a block. Not for several threads at once.
    """

    BLOCK = 16 * 1024  # bytes

    def __init__(self, file: io.FileIO, path: Path) -> None:
        """Reads all of it. file: is closed with this one. path: where the published file lies.

        Raises ValueError when it is not what was published.
        """
        whole = hashlib.sha256()
        self._digests = bytearray()
        self._size = 0
        self._position = 0
        self._file = file  # not memory-mapped: a mapped file that is cut short kills the process that touches it
        while block := file.read(self.BLOCK):
            whole.update(block)
            self._digests += hashlib.sha256(block).digest()
            self._size += len(block)
        if whole.hexdigest()[:32] != stated_checksum(path):  # as `checksum_of`, in one pass with the blocks
            raise OtherBytes

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes there; where that is from the beginning."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer at the end. Raises ValueError when they are no longer what they were."""
        start = self._position
        end = self._size if size < 0 else min(start + size, self._size)
        if start >= end:
            return b""
        first, behind = start // self.BLOCK, -(-end // self.BLOCK)
        offset = first * self.BLOCK
        read = memoryview(os.pread(self._file.fileno(), behind * self.BLOCK - offset, offset))
        found = b"".join(
            hashlib.sha256(read[block : block + self.BLOCK]).digest() for block in range(0, len(read), self.BLOCK)
        )
        if found != self._digests[first * 32 : behind * 32]:
            raise OtherBytes
        self._position = end
        return bytes(read[start - offset : end - offset])
