"""Names of API keys, from a file that whoever runs the deployment keeps: key_names.csv in the data folder."""

from __future__ import annotations

import csv
import io
import logging
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple, TextIO

from pipeline.contract.store import Signature, Store, StoreError
from pipeline.contract.wording import count_of

_LOG = logging.getLogger("keytally.names")
COLUMNS = ("organization_id", "api_key_id", "name")
_RULES = (
    re.compile(r"[A-Za-z0-9_-]{1,128}"),
    re.compile(r"[A-Za-z0-9_.:-]{1,128}"),
    # No control characters, and nothing that was no UTF-8.
    re.compile("[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,256}"),
)


class Names(NamedTuple):
    """The names of one state of the file. signature: what tells this state from others; () where there is no file."""

    signature: Signature = ()
    names: Mapping[str, str] = {}

    def of(self, organization_id: str, api_key_id: str) -> str | None:
        """The key's name; None where it has none."""
        return self.names.get(f"{organization_id}/{api_key_id}")


class NamesFile:
    """The file, and the names that were last read from it.

    A file that cannot be used names nothing, and says so in the log, once. In memory at most MOST_NAMES names, some
    300 bytes each, 60 MB in all.
    """

    MOST_NAMES = 200_000
    MOST_BYTES = 64 * 2**20  # a larger file is not read

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.layout.key_names
        self._failure: str | None = None  # why the file could not be opened or read, the last time
        self._look_at = 0.0  # the next time, monotonic
        self.names = Names()

    def refresh(self) -> None:
        """Reads the file if it is another than it was: about a microsecond when it is not. Never raises."""
        if time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + self._store.look_seconds
        with suppress(StoreError):  # away: the reader says so, and the names stay what they were
            self._refresh()

    def _refresh(self) -> None:
        signature = self._signature()
        if signature == self.names.signature:
            return
        names: dict[str, str] = {}
        failure: str | None = None
        if signature:
            try:
                # Looked at before it is read: one that is replaced meanwhile is read again.
                if int(signature[0]) > self.MOST_BYTES:
                    raise ValueError(f"it is larger than {self.MOST_BYTES:,} bytes")
                with self._store.open(self._path) as file:
                    names = self._read(io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline=""))
            except ValueError as error:
                _LOG.error("%s names no keys: %s", self._path.name, error)
            except OSError as error:  # of the moment, and not of the file: it is tried again at the next look
                signature = ()  # nor may an answer be kept as one of this state of the file
                failure = error.strerror or str(error)
                if failure != self._failure:
                    _LOG.error("%s names no keys: %s", self._path.name, failure)
        self._failure = failure
        self.names = Names(signature, names)

    def _signature(self) -> Signature:
        try:
            return self._store.signature(self._path) or ()
        except OSError:
            return ()

    def _read(self, file: TextIO) -> dict[str, str]:
        """Raises ValueError when the file is none of names."""
        rows = _rows(file)
        _, header = next(rows, (0, None))
        if header is None or any(header.count(column) != 1 for column in COLUMNS):
            raise ValueError(f"its first line must name the columns {', '.join(COLUMNS)}")
        positions = [header.index(column) for column in COLUMNS]
        names: dict[str, str] = {}
        unused: list[str] = []
        for line, row in rows:
            if row == []:  # a blank line
                continue
            values = [row[position] for position in positions] if row and len(row) == len(header) else []
            if not values or not all(rule.fullmatch(value) for rule, value in zip(_RULES, values, strict=True)):
                wrong = "has not an organization, a key, and a name of 1 to 256 characters"
            elif (key := f"{values[0]}/{values[1]}") in names:
                wrong = "names a key that was named before"
            elif len(names) >= self.MOST_NAMES:
                wrong = f"is beyond {self.MOST_NAMES:,} names"
            else:
                names[key] = values[2]
                continue
            unused.append(f"line {line} {wrong}" if not unused else "")
        if unused:
            _LOG.warning("%s: %s left out; %s", self._path.name, count_of(len(unused), "row"), unused[0])
        return names


def _rows(file: TextIO) -> Iterator[tuple[int, list[str] | None]]:
    """The rows with the numbers of the lines they end on; None for one that is no CSV."""
    reader = csv.reader(file, strict=True)
    while True:
        try:
            row: list[str] | None = next(reader)
        except StopIteration:
            return
        except csv.Error:
            row = None
        yield reader.line_num, row
