"""The quarantine: every line of the published contents that is no request, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq

from pipeline.artifacts import verify
from pipeline.contract.layout import Layout
from pipeline.errors import HeldBack
from pipeline.ledger import FileEntry, read_ledger
from pipeline.raw import RawFile, list_raw, read_texts

TEXT_CHARACTERS = 2_000


@dataclass(frozen=True)
class QuarantinedLine:
    """A rejected line. text: cut at TEXT_CHARACTERS; None when its raw file is gone or was changed since."""

    file: str
    line: int
    reason: str
    text: str | None


def quarantined_lines(layout: Layout) -> Iterator[QuarantinedLine]:
    """Every quarantined line of the newest version, in order of file and line, with its text read from raw/.

    Raises ArtifactDamaged when a list of rejected lines is missing or damaged.
    """
    present = {raw_file.file: raw_file for raw_file in list_raw(layout.raw).files}
    for _, entry in sorted(read_ledger(layout).files.items()):
        if entry.same_as or not entry.take_in.rejected:
            continue
        rejected = layout.rejected / entry.take_in.rejected
        verify(rejected)
        rows = pq.read_table(rejected).to_pydict()
        texts = _texts(entry, present.get(entry.file), frozenset(rows["line"]))
        for line, reason in zip(rows["line"], rows["reason"], strict=True):
            yield QuarantinedLine(entry.file, line, reason, texts.get(line))


def _texts(entry: FileEntry, raw_file: RawFile | None, lines: frozenset[int]) -> dict[int, str]:
    if raw_file is None or raw_file.signature != entry.signature:
        return {}
    try:
        return read_texts(raw_file, lines, TEXT_CHARACTERS)
    except HeldBack:
        return {}  # it changed at this moment: as good as gone
