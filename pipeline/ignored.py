"""Ignored files that look like logs: whoever put such a file below raw/ expects its requests to count."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.format import ENDINGS_OF

if TYPE_CHECKING:
    from pipeline.raw import RawListing

# The ending of a log somewhere in the name: `access.jsonl-20261111`, `access.jsonl.1`, `x.log`, `x.JSONL`.
_LOG = re.compile(r"\.(jsonl|ndjson|json|parquet|csv|log)(?![a-z0-9])", re.IGNORECASE)
# A file beside a log that holds no requests, or not yet: an unfinished upload, a checksum, a signature, a lock.
_COMPANION = re.compile(
    r"\.(part|partial|filepart|crdownload|tmp|temp|md5|sha1|sha256|sha512|asc|sig|crc|lock|swp|pos|offset)$|~$",
    re.IGNORECASE,
)
_COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True)
class IgnoredLog:
    """A file below raw/ that no format reads, and that looks like a log. reason: why it is ignored."""

    file: str
    reason: str
    what_to_do: str

    def as_json(self) -> dict[str, str]:
        return {"file": self.file, "reason": self.reason}


def ignored_logs(listing: RawListing) -> list[IgnoredLog]:
    """The ignored files that look like logs, in order of path."""
    return [
        IgnoredLog(file, reason, _what_to_do(file)) for file, reason in listing.ignored.items() if looks_like_log(file)
    ]


def looks_like_log(file: str) -> bool:
    """Return True if the name of a file has the ending of a log somewhere in it."""
    name = file.rpartition("/")[2]
    return bool(_LOG.search(name)) and not _COMPANION.search(name)


def _what_to_do(file: str) -> str:
    renamed = readable_name(file.rpartition("/")[2])
    rename = f"if it holds requests, name it {renamed}; if not, " if renamed else "if it holds no requests, "
    return f"{rename}move it out of raw/, or to a name that begins with '_'"


def readable_name(name: str) -> str | None:
    """A name for an ignored log under which it is read: `access-20261111.jsonl` for `access.jsonl-20261111`.

    None where a name alone does not help.
    """
    bare, compressed = name, ""
    for ending in _COMPRESSED:
        if bare.lower().endswith(ending):
            bare, compressed = bare[: -len(ending)], ending
    found = list(_LOG.finditer(bare))
    if not found:
        return None
    last = found[-1]
    kind = last[1].lower()
    behind = bare[last.end() :]
    if kind == "csv" or re.search(r"[a-z]{2}", behind, re.IGNORECASE):
        return None  # CSV needs a format that reads it; another compression, as .bz2, needs another program
    proposed = f"{bare[: last.start()]}{behind}.{'jsonl' if kind == 'log' else kind}{compressed}"
    return proposed if proposed != name and proposed.endswith(_ENDINGS) else None


_ENDINGS = tuple(ending for endings in ENDINGS_OF.values() for ending in endings)
