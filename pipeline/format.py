"""Formats: each says how the fields of some producer's log become those of a request.

A format is one SQL file with a short header. The ones in formats/ beside this module are shipped; those in formats/ of
the data root are the deployment's own, and stand in for a shipped one of their name.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.contract.store import Store
from pipeline.errors import KeytallyError

SHIPPED = Path(__file__).parent / "formats"
MOST_CHARACTERS = 100_000  # of a format's text

JSON_ENDINGS = (".json", ".json.gz", ".json.zst")  # a record a line, or one record in all of the file
ENDINGS_OF = {
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst", ".ndjson", ".ndjson.gz", ".ndjson.zst", *JSON_ENDINGS),
    "parquet": (".parquet",),
    "csv": (".csv", ".csv.gz"),
}


@dataclass(frozen=True)
class Terms:
    """What a format says of the amounts of all its records.

    book_prices: the cost may be left out, a price book gives it. tokens_as_units: synapses and neurons that are left
    out are not zero, but what the tokens make. currency: of the cost; None: the deployment's own.
    cached_beside_input: the record counts cached tokens beside its input tokens, not among them. most_complete: of
    copies that disagree, the most complete one counts instead of the earliest.
    """

    book_prices: bool = False
    tokens_as_units: bool = False
    currency: str | None = None
    cached_beside_input: bool = False
    most_complete: bool = False


SEPARATORS = {"commas": ",", "semicolons": ";", "tabs": "\t"}
DECIMAL_COMMAS = "decimal commas"


@dataclass(frozen=True)
class Csv:
    """How the CSV files of a format are written.

    separator: The character between two cells. None: the format does not name the separator. Then it is the comma, and
        a file whose header has another separator is held back.
    decimal_commas: Whether a cell such as `0,0021` is the number 0.0021.
    """

    separator: str | None = None
    decimal_commas: bool = False

    @property
    def name(self) -> str | None:
        """The name of the separator, a key of SEPARATORS."""
        return next((name for name, character in SEPARATORS.items() if character == self.separator), None)

    @property
    def entry(self) -> str:
        """The value of the header entry `csv:` that declares this."""
        return (self.name or "commas") + (f", {DECIMAL_COMMAS}" if self.decimal_commas else "")


@dataclass(frozen=True)
class Format:
    """One format. text: its file, empty for the native one. reads: the kinds of file it reads, keys of ENDINGS_OF.

    skips: which records its SQL leaves out, in words; None: a record of which it makes no request is quarantined.
    problem: why its header cannot be used, in a sentence.
    """

    name: str
    text: str = ""
    reads: tuple[str, ...] = ("jsonl", "parquet")
    terms: Terms = Terms()
    skips: str | None = None
    problem: str | None = None
    csv: Csv = Csv()

    @property
    def endings(self) -> tuple[str, ...]:
        """The endings of the files it reads."""
        return tuple(ending for kind in self.reads for ending in ENDINGS_OF[kind])

    @property
    def endings_text(self) -> str:
        """The endings for a person: `.jsonl, .ndjson and .json (also with .gz or .zst), .parquet`."""
        lines = ".jsonl, .ndjson and .json (also with .gz or .zst)"
        return ", ".join(lines if kind == "jsonl" else ", ".join(ENDINGS_OF[kind]) for kind in self.reads)

    @property
    def is_mapped(self) -> bool:
        """Whether SQL makes requests of its records: not in the native format, whose records are requests."""
        return self is not NATIVE and self.name != NATIVE.name


NATIVE = Format("native")


def formats_of(store: Store) -> Mapping[str, Format]:
    """Every mapped format that a data root knows, by its name. Raises StoreError."""
    return {**_shipped(), **{found.name: found for found in _own(store)}}


@cache
def _shipped() -> Mapping[str, Format]:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(SHIPPED.glob("*.sql"))}
    return {name: read_format(name, text) for name, text in texts.items() if not name.startswith(NATIVE.name)}


def _own(store: Store) -> Iterator[Format]:
    folder = store.layout.formats
    for found in store.list(folder):
        if found.path.parent == folder and found.path.suffix == ".sql" and not found.path.name.startswith((".", "_")):
            try:
                with store.open(found.path) as file:
                    text = file.read(4 * MOST_CHARACTERS).decode("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                what = getattr(error, "strerror", None) or "it is no UTF-8"
                yield Format(found.path.stem, problem=f"formats/{found.path.name} cannot be read: {what}")
            else:
                yield read_format(found.path.stem, text)


def write_format(store: Store, name: str, text: str) -> str:
    """Write a format of the deployment's own; where it lies now. Raises KeytallyError where one is there already."""
    if not text:
        raise KeytallyError("the file is in the native format, which needs no SQL: put it anywhere below raw/")
    if problem := read_format(name, text).problem:
        raise KeytallyError(problem)
    path = store.layout.formats / f"{name}.sql"
    if store.signature(path):
        raise KeytallyError(f"{store.name_of(path)} is there already: choose another name, or move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        finished = Path(folder) / path.name
        finished.write_text(text, encoding="utf-8")
        store.write(finished, path)
    return store.name_of(path)


# --- the header ------------------------------------------------------------------------------------------------------

_ENTRY = re.compile(r"--\s*([A-Za-z_]+):(.*)")
_KEYS = ("reads", "producer", "currency", "prices", "units", "rounds", "skips", "cached", "copies", "csv")
_REQUIRED = ("reads", "prices", "units")
_CHOICES = {
    "prices": ("record", "book"),
    "units": ("record", "tokens"),
    "cached": ("in input", "beside input"),
    "copies": ("earliest", "most complete"),
}


def read_format(name: str, text: str) -> Format:
    """The format that a file of this name and text declares. What is wrong with its header is its `problem`."""
    try:
        return _declared(name, text)
    except _HeaderError as error:
        return Format(name, text, reads=tuple(ENDINGS_OF), problem=f"formats/{name}.sql {error}")


class _HeaderError(Exception):
    pass


def _declared(name: str, text: str) -> Format:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise _HeaderError("has a name that no format may have: use letters, digits, - and _")
    if name == NATIVE.name:
        raise _HeaderError("has the name of keytally's own format: give it another one")
    if len(text) > MOST_CHARACTERS:
        raise _HeaderError(f"is longer than {MOST_CHARACTERS:,} characters")
    header = dict(_entries(text))
    for key in _REQUIRED:
        if key not in header:
            raise _HeaderError(f"does not say '-- {key}: ...' in the comments that it begins with")
    for key, choices in _CHOICES.items():
        if key in header and header[key] not in choices:
            raise _HeaderError(f"says '-- {key}: {header[key]}', but may say {' or '.join(choices)}")
    reads = tuple(re.split(r"\s*,\s*", header["reads"]))
    if unknown := [kind for kind in reads if kind not in ENDINGS_OF]:
        raise _HeaderError(f"says that it reads '{unknown[0]}', but may read {', '.join(ENDINGS_OF)}")
    currency = header.get("currency")
    if currency is not None and not re.fullmatch("[A-Z]{3}", currency):
        raise _HeaderError(f"says '-- currency: {currency}', but a currency is three capital letters, as USD")
    terms = Terms(
        book_prices=header["prices"] == "book",
        tokens_as_units=header["units"] == "tokens",
        currency=currency,
        cached_beside_input=header.get("cached") == "beside input",
        most_complete=header.get("copies") == "most complete",
    )
    csv = _csv(header["csv"]) if "csv" in header else Csv()
    return Format(name, text, reads, terms, header.get("skips"), csv=csv)


def _csv(entry: str) -> Csv:
    separator, _, decimals = (part.strip() for part in entry.partition(","))
    if separator not in SEPARATORS or decimals not in ("", DECIMAL_COMMAS):
        raise _HeaderError(
            f"says '-- csv: {entry}', but may say {', '.join(SEPARATORS)}, and behind it ', {DECIMAL_COMMAS}'"
        )
    return Csv(SEPARATORS[separator], decimals == DECIMAL_COMMAS)


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """The entries of the comments that a text begins with: key and value, each key once."""
    seen: set[str] = set()
    for line in text.removeprefix("\ufeff").splitlines():
        if line.strip() and not line.startswith("--"):
            return
        if not (entry := _ENTRY.match(line)):
            continue
        key, value = entry[1], entry[2].strip()
        if key not in _KEYS:
            raise _HeaderError(f"says '-- {key}:', which is none of {', '.join(_KEYS)}")
        if key in seen or not value:
            raise _HeaderError(f"says '-- {key}:' {'twice' if key in seen else 'and nothing behind it'}")
        seen.add(key)
        yield key, value


def folder_of(file: str) -> str | None:
    """The first folder of a path below raw/, which names its format; None for a file directly in it."""
    folder, slash, _ = file.partition("/")
    return folder if slash else None
