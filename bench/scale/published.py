"""What a run published, and how long the first who ask for it wait: one line of JSON.

python -m bench.scale.published DATA
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.contract.published import Publication, open_published, publication_of
from pipeline.contract.settings import Settings
from pipeline.contract.store import Store, open_store
from serving.reader import Reader

READS = 300
MIB = 2**20


@dataclass(frozen=True)
class Published:
    """Sizes in MiB, times in ms. cost: in 10^-9. rows: of organization, day, key and model.

    first_look: from a new reader to the first organization's month, its whole file hashed; cold_read: to another's from
    then on, the median. The files are in the page cache, since they were written just now.
    """

    requests: int
    cost: int
    organizations: int
    rows: int
    largest_organization_day: float
    largest_api_key_day: float
    rollups: float
    events: float
    raw: float
    first_look: float
    cold_read: float


def look(data: Path) -> Published:
    """What lies in a data root after a run."""
    store = open_store(Settings.from_environment({"KEYTALLY_DATA": str(data)}))
    table = open_published(store)
    if table is None:
        sys.exit(f"nothing is published in {data}")
    publication = publication_of(table)
    months = _read(store, publication, "organization_month", ["organization_id", "requests", "cost"])
    organizations = months["organization_id"].unique()
    asked = random.Random(1).choices(range(len(organizations)), k=READS)
    first_look, cold_read = _waits(store, [organizations[number].as_py() for number in asked])
    by_day, by_key = (_paths(store, publication, rollup) for rollup in ("organization_day", "api_key_day"))
    layout = store.layout
    return Published(
        requests=pc.sum(months["requests"]).as_py(),
        cost=int(pc.sum(months["cost"]).as_py() * 10**9),
        organizations=len(organizations),
        rows=sum(pq.read_metadata(path).num_rows for path in by_key),
        largest_organization_day=max(map(_size, by_day)),
        largest_api_key_day=max(map(_size, by_key)),
        rollups=_sizes(layout.rollups),
        events=_sizes(layout.events),
        raw=_sizes(layout.raw),
        first_look=first_look,
        cold_read=cold_read,
    )


def _waits(store: Store, organizations: Iterable[str]) -> tuple[float, float]:
    """How long the first waits who asks for the newest month, and in the median the others."""
    begun = time.perf_counter()
    reader = Reader(store)
    reader.refresh()
    newest = max(month for rollup, month in reader.publication.files if rollup == "organization_day" and month)
    file = reader.publication.files["organization_day", newest]
    waits = []
    for organization in organizations:
        reader.usage_of(organization, file)
        waits.append((time.perf_counter() - begun) * 1e3)
        begun = time.perf_counter()
    return waits[0], statistics.median(waits[1:])


def _read(store: Store, publication: Publication, rollup: str, columns: list[str]) -> pa.Table:
    return pa.concat_tables(pq.read_table(path, columns=columns) for path in _paths(store, publication, rollup))


def _paths(store: Store, publication: Publication, rollup: str) -> list[Path]:
    files = publication.files.values()
    return [store.layout.rollups / file.path for file in files if file.rollup == rollup]


def _sizes(folder: Path) -> float:
    return sum(map(_size, folder.rglob("*.*")))


def _size(path: Path) -> float:
    return path.stat().st_size / MIB if path.is_file() else 0.0


if __name__ == "__main__":
    print(json.dumps(asdict(look(Path(sys.argv[1])))))
