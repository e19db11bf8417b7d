"""Batches that wait to be written, each to the file it belongs to: more files than can be open at once.

They wait without their file's name, too, which depends on what is read last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import pyarrow as pa

from pipeline.contract.seam import step

HELD_BYTES = 16 * 2**20  # in memory; what is more waits on the disk


class Spool:
    """Batches of one schema: first they are added, then read, once or more and in any order. A context manager."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self._writer: pa.RecordBatchFileWriter | None = None
        self._written = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._writer:
            self._writer.close()
            self._path.unlink()

    def add(self, batch: pa.RecordBatch) -> int:
        """Keep a batch; the number to read it by."""
        if not self._writer and self._held_bytes + batch.nbytes <= HELD_BYTES:
            self._held.append(batch)
            self._held_bytes += batch.nbytes
            return len(self._held) - 1
        if not self._writer:
            step("write a file in scratch")
            self._writer = pa.ipc.new_file(self._path, self._schema)
        self._writer.write_batch(batch)
        self._written += 1
        return len(self._held) + self._written - 1

    def read(self, numbers: Iterable[int] | None = None) -> Iterator[pa.RecordBatch]:
        """Some batches, by their numbers, or all as they were added; from then on none can be added any more."""
        held = len(self._held)
        if numbers is None:
            numbers = range(held + self._written)
        if not self._writer:
            return map(self._held.__getitem__, numbers)
        self._writer.close()
        written = pa.ipc.open_file(pa.OSFile(str(self._path)))
        return (self._held[n] if n < held else written.get_batch(n - held) for n in numbers)
