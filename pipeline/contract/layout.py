"""Where everything lies below the data root: the only place that spells a path.

A month is its first day, as a `date`.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

# The days a request may be dated on.
FIRST_DAY, LAST_DAY = date(2020, 1, 1), date(2030, 12, 31)


_FOLDERS = ("events", "rejected", "daily", "buckets", "books", "rollups")


@dataclass(frozen=True)
class Layout:
    """The folders of one data root."""

    root: Path

    @property
    def raw(self) -> Path:
        """What the gateway wrote. Only ever read."""
        return self.root / "raw"

    @property
    def formats(self) -> Path:
        """The deployment's own formats, one SQL file each. Only ever read."""
        return self.root / "formats"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def rejected(self) -> Path:
        return self.root / "rejected"

    @property
    def daily(self) -> Path:
        return self.root / "daily"

    @property
    def buckets(self) -> Path:
        """Parts of days that are too large for one step, while such a day is rolled up."""
        return self.root / "buckets"

    @property
    def books(self) -> Path:
        """The price books and tables of rates that days were priced by, for as long as the ledger names them."""
        return self.root / "books"

    @property
    def prices(self) -> Path:
        """The price book, kept by whoever runs the deployment."""
        return self.root / "prices.csv"

    @property
    def rates(self) -> Path:
        """The rates of currencies, kept by whoever runs the deployment. Only ever read."""
        return self.root / "fx.csv"

    @property
    def rollups(self) -> Path:
        """The published Delta table."""
        return self.root / "rollups"

    @property
    def log(self) -> Path:
        """The log of the published table. Checkpoints in it are Parquet files too."""
        return self.rollups / "_delta_log"

    def log_entry(self, version: int) -> Path:
        """The file that is the commit of a version."""
        return self.log / f"{version:020d}.json"

    @property
    def scratch(self) -> Path:
        """One folder a run, for what is not finished yet."""
        return self.root / "scratch"

    @property
    def last_run(self) -> Path:
        """The newest run's note: see `last_run`. No number depends on it."""
        return self.root / "last_run.json"

    @property
    def failed_run(self) -> Path:
        """The note of the newest run that failed: see `failure`. It stays; a run that started later says it is past."""
        return self.root / "failed_run.json"

    @property
    def key_names(self) -> Path:
        """Names of API keys, kept by whoever runs the deployment. Only ever read; no number depends on it."""
        return self.root / "key_names.csv"

    def events_of(self, day: date) -> Path:
        return self.events / f"day={day}"

    def daily_of(self, day: date) -> Path:
        return self.daily / f"day={day}"


def below_the_root(artifact: Path) -> str:
    """Where a file of ours lies, as it is told to an operator: its path from the data root on."""
    parts = artifact.parts
    # From the right: a data root may well lie in a folder of such a name.
    folder = next((at for at in reversed(range(len(parts))) if parts[at] in _FOLDERS), len(parts) - 1)
    return "/".join(parts[folder:])


def day_of(artifact: Path) -> date | None:
    """The day in whose folder a file lies; None where it lies in no such folder."""
    try:
        return date.fromisoformat(artifact.parent.name.removeprefix("day="))
    except ValueError:
        return None


def rollup_folder(rollup: str, month: date | None) -> str:
    """Folder of a published partition, relative to the Delta table.

    Where there is no month, it says so in the way of Hive: engines that read partitions off paths want each of them.
    """
    return f"rollup={rollup}/month={'__HIVE_DEFAULT_PARTITION__' if month is None else month_name(month)}"


def is_in_partition(path: str, rollup: str, month: date | None) -> bool:
    """Whether a published file lies where a partition's files lie, or did: before, none for no month was not said."""
    folder = f"rollup={rollup}" if month is None else rollup_folder(rollup, month)
    return path.startswith(folder + "/")


def month_of(day: date) -> date:
    """The month of `day`: its first day."""
    return day.replace(day=1)


def month_name(month: date) -> str:
    """`2025-11`."""
    return f"{month:%Y-%m}"


def last_day_of(month: date) -> date:
    """The last day of the month of which `month` is the first."""
    return (month + timedelta(days=31)).replace(day=1) - timedelta(days=1)


def days_between(first_day: date, last_day: date) -> Iterator[date]:
    """Every day from `first_day` to `last_day`, both included."""
    for offset in range((last_day - first_day).days + 1):
        yield first_day + timedelta(days=offset)


def checksum_of(path: Path) -> str:
    """The checksum that stands in the names of our files: 32 hex digits of the SHA-256 of their bytes."""
    with io.FileIO(path) as file:
        return checksum_in(file)


def checksum_in(file: io.FileIO) -> str:
    """The same of an open file, which is at its beginning before and after."""
    checksum = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    file.seek(0)
    return checksum


def stated_checksum(path: Path | str) -> str:
    """The checksum a file's name promises: the part of its stem behind the last dash."""
    return Path(path).stem.rpartition("-")[2]
